"""`dataset.json`: what a prepared set is, where it came from, and what was counted in it."""

from pathlib import Path
from typing import TypedDict, cast

from pipelines.documents import read_document, write_document

SCHEMA_NUMBER = 1
DESCRIPTION = "dataset.json"

# `yes/no` is no Python name, hence the form of a call.
SplitDescription = TypedDict(
    "SplitDescription",
    {
        "file": str,
        "sha256": str,
        "records": int,
        "images": int,
        "open": int,
        "closed": int,
        "yes/no": int,
        "left_out": int,
    },
)


class Count(TypedDict):
    """One count of a release, and the published one where there is one."""

    found: int
    published: int | None


class Description(TypedDict):
    """What `dataset.json` holds."""

    schema: int
    name: str
    title: str
    task: str
    form: str
    licence: str
    access: str
    download: str
    image_root: str
    split: str
    seed: int
    counts: dict[str, Count]
    counts_from: str
    shared_images: dict[str, int]
    splits: dict[str, SplitDescription]
    notes: list[str]
    created: str


def write_description(folder: Path, description: Description) -> None:
    """Write `dataset.json`."""
    write_document(folder / DESCRIPTION, description)


def set_name(data: Path) -> str | None:
    """Name of the prepared set that a data file belongs to (`dataset.json` beside it), or None."""
    file = data.with_name(DESCRIPTION)
    if not file.is_file():
        return None
    found = read_document(file, SCHEMA_NUMBER, "run `medalign data prepare` again")
    return cast("str | None", found.get("name"))
