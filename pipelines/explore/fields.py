"""Fields of the records by which items can be chosen, such as the modality or the plane.

They stand in the data file alone, which has to be read whole: in a thread, and not before somebody
asks.
"""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.items import sampled
from pipelines.evaluation.result import Result
from pipelines.explore.table import BLOCK
from shared.errors import UserError
from shared.records import load_records

MOST_VALUES = 40  # a field of more names items, it does not group them
State = Literal["unread", "reading", "ready", "failed"]


class FieldsDocument(TypedDict):
    """The fields with their values as text, sorted; `reason` says why there are none."""

    state: State
    fields: dict[str, list[str]]
    reason: str


class Fields:
    """The fields of an evaluation's records; `start` reads them."""

    def __init__(self, result: Result) -> None:
        self._result = result
        self._values: dict[str, list[str]] = {}
        self._codes: dict[str, NDArray[np.int16]] = {}  # an item each; -1: it has no such field
        self._state: State = "unread"
        self._reason = ""
        self._lock = threading.Lock()

    def start(self) -> threading.Thread | None:
        """Begin to read the data file, where nobody has yet; return the thread that does."""
        with self._lock:
            if self._state != "unread":
                return None
            self._state = "reading"
        thread = threading.Thread(target=self._run, name="fields", daemon=True)
        thread.start()
        return thread

    def document(self) -> FieldsDocument:
        """Return what is known so far."""
        return {"state": self._state, "fields": self._values, "reason": self._reason}

    def of(self, place: int) -> dict[str, str]:
        """Return the fields of one item, as far as they are read."""
        if self._state != "ready":
            return {}
        codes = {name: int(codes[place]) for name, codes in self._codes.items()}
        return {name: self._values[name][code] for name, code in codes.items() if code >= 0}

    def test(self, field: str, value: str) -> Callable[[int], NDArray[np.bool_]]:
        """Return the function from a block's number to which of its items have this value.

        Raises
        ------
        UserError
            There is no such field or value, or the data file is not read.
        """
        if self._state != "ready":
            raise UserError(f"the fields of the data file are not read: {self._reason or 'wait'}")
        if field not in self._values or value not in self._values[field]:
            raise UserError(f"no item has {field}={value}")
        codes, code = self._codes[field], self._values[field].index(value)
        return lambda number: codes[number * BLOCK : (number + 1) * BLOCK] == code

    def _run(self) -> None:
        try:
            self._read()
            self._state = "ready"
        except (UserError, OSError) as error:
            self._reason, self._state = str(error), "failed"

    def _read(self) -> None:
        data = self._result["data"]
        file = Path(data["file"])
        if not file.is_file():
            raise UserError(f"the data file {file} is not there; start from the same folder")
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != data["sha256"]:
                raise UserError(f"the data file {file} is not the one that was answered")
        records = sampled(load_records(file), self._result["settings"]["limit"])
        names = dict.fromkeys(name for record in records for name in record.extra)
        for name in names:
            texts = [_text(record.extra.get(name)) for record in records]
            values = sorted({one for one in texts if one is not None})
            if 1 < len(values) <= MOST_VALUES:
                place = {value: number for number, value in enumerate(values)}
                codes = [-1 if one is None else place[one] for one in texts]
                self._codes[name] = np.array(codes, np.int16)
                self._values[name] = values


def _text(value: object) -> str | None:
    return str(value) if isinstance(value, str | int | float) and value != "" else None
