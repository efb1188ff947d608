"""What a request says and what is sent back."""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple


class Reply(NamedTuple):
    """What is sent back."""

    status: HTTPStatus
    kind: str  # media type
    body: bytes
    headers: Mapping[str, str] = {}


class Refusal(Exception):
    """A request that is answered by a status and one line."""

    def __init__(self, status: HTTPStatus, line: str) -> None:
        super().__init__(line)
        self.status = status


class Query:
    """The parameters of a request, checked as they are taken."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = given

    def text(self, name: str, otherwise: str = "") -> str:
        """Return a parameter as it is."""
        return self._given.get(name, otherwise)

    def number(self, name: str, otherwise: int | None = None) -> int:
        """Return a whole number from 0; a Refusal for anything else."""
        text = self._given.get(name)
        if text is None and otherwise is not None:
            return otherwise
        if text is None or not re.fullmatch(r"[0-9]{1,12}", text):
            raise Refusal(HTTPStatus.BAD_REQUEST, f"{name} is {text!r}, not a number from 0")
        return int(text)


def json_reply(document: object, status: HTTPStatus = HTTPStatus.OK) -> Reply:
    """Send a document as JSON."""
    text = json.dumps(document, allow_nan=False)  # a browser reads no NaN
    return Reply(status, "application/json", text.encode())


def error_reply(status: HTTPStatus, line: str) -> Reply:
    """Send one line that says what is wrong."""
    return json_reply({"error": line}, status)
