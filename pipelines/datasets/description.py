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
    found = _description(data)
    return None if found is None else found["name"]


def split_line(data: Path) -> str | None:
    """Say how the prepared set of a data file is split, and how much of its training data is left.

    None where the file belongs to no prepared set.
    """
    found = _description(data)
    if found is None or "train" not in found["splits"]:
        return None
    train = found["splits"]["train"]
    released = train["records"] + train["left_out"]
    line = f"{found['name']}, split {found['split']}: "
    if not train["left_out"]:
        return f"{line}all {released:,} training records"
    line += f"{train['records']:,} of {released:,} training records"
    shared = found["shared_images"].get("test+train", 0)
    if found["split"] == "by-image" and shared:
        images = found["splits"]["test"]["images"]
        line += f", since {shared:,} of its {images:,} test images are training images"
    return line


def _description(data: Path) -> Description | None:
    file = data.with_name(DESCRIPTION)
    if not file.is_file():
        return None
    return cast(
        "Description", read_document(file, SCHEMA_NUMBER, "run `medalign data prepare` again")
    )
