"""JSON documents that one command writes and another reads.

Each carries the number of its schema, is on disk whole or not at all, and is refused in one line
where its schema is another one. The keys of each are a TypedDict beside its writer.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from shared.errors import UserError
from shared.files import refused_as, whole_file

SCHEMA = "schema"


def write_document(file: Path, document: Mapping[str, object], indent: int = 1) -> None:
    """Write a document as UTF-8 text, its folder made where there is none."""
    write_text(file, json.dumps(document, indent=indent, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text file whole, its folder made where there is none."""
    with refused_as(f"cannot write {file}", "choose another place"):
        file.parent.mkdir(parents=True, exist_ok=True)
        whole_file(file, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_document(
    file: Path, schema: int, remedy: str, oldest: int | None = None
) -> dict[str, object]:
    """Read a document of the schema number `schema`, or of one from `oldest` on.

    One without a number was written before there were numbers, and has the keys of schema 1.

    Raises
    ------
    UserError
        The file is not such a document, or has another schema; `remedy` is the way out.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); {remedy}") from None
    if not isinstance(document, dict):
        raise UserError(f"{file} holds a {type(document).__name__}, not an object; {remedy}")
    found = document.get(SCHEMA, 1)
    if found not in range(schema if oldest is None else oldest, schema + 1):
        raise UserError(f"{file} has schema {found!r}, this version reads {schema}; {remedy}")
    return document
