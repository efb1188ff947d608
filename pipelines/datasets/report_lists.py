"""Reports in lists of findings and impressions, as MedEvalKit and others pass them on.

    SOURCE/test.json (and train.json, validation.json)    a list a split
    SOURCE/images/                                        what the items' images are relative to

An item: {"id": "open_i_1020", "image": ["CXR1020_IM-0017-1001.png", ...], "findings",
"impression"}. All of its images are shown, as there.
"""

from collections.abc import Sequence
from pathlib import Path

from pipelines.datasets.release import (
    REPORT_PROMPT,
    Release,
    Row,
    find,
    find_optional,
    json_rows,
    text_field,
)
from shared.errors import UserError
from shared.records import Record, Turn, front_images

SECTIONS = ("findings", "impression")
_FILES = {
    "train": ("train.json",),
    "validation": ("validation.json", "valid.json", "val.json"),
    "test": ("test.json",),
}
_IMAGES = ("image", "images", "image_path")


def find_lists(source: Path) -> dict[str, Path]:
    """Return the list of each split that is there; none where they are no lists of sections."""
    files = {split: find_optional(source, *names) for split, names in _FILES.items()}
    there = {split: file for split, file in files.items() if file is not None}
    first = next(iter(there.values()), None)
    if first is None:
        return {}
    _, row = next(json_rows(first), ("", {}))
    return there if any(name in row for name in SECTIONS) else {}


def read_lists(source: Path, files: dict[str, Path], sections: Sequence[str]) -> Release:
    """Read the lists that `find_lists` found, with the sections asked for as the report.

    Raises
    ------
    UserError
        An item lacks its id or its images, or no item has the sections.
    """
    image_root = find(source, "image folder", "images", "files")
    splits: dict[str, list[Record]] = {}
    counts: dict[str, int] = {}
    empty = 0
    for split, file in files.items():
        rows = list(json_rows(file))
        made = [section_record(row, where, sections) for where, row in rows]
        splits[split] = [record for record in made if record is not None]
        counts[f"{split} reports"] = len(rows)
        empty += len(rows) - len(splits[split])
    if not any(splits.values()):
        raise UserError(f"{source}: no report has {' or '.join(sections)}")
    notes = [f"the report is its {' and its '.join(sections)}; all images of an item are shown"]
    if empty:
        notes.append(f"{empty} reports without {' or '.join(sections)} are left out")
    return Release("lists", splits, image_root, counts, notes)


def section_record(row: Row, where: str, sections: Sequence[str]) -> Record | None:
    """Return the record of an item with its sections as the report; None where it has none."""
    images = next((row[name] for name in _IMAGES if row.get(name)), None)
    shown = [images] if isinstance(images, str) else images
    if not isinstance(shown, list) or not all(isinstance(one, str) for one in shown):
        raise UserError(f"{where}: no `{'` or `'.join(_IMAGES)}` with a path or a list of paths")
    report = " ".join(
        " ".join(text.split())
        for name in sections
        if isinstance(text := row.get(name), str) and text.strip()
    )
    if not report:
        return None
    turns = (Turn("human", front_images(REPORT_PROMPT, len(shown))), Turn("gpt", report))
    identifier = text_field(row, where, "id", "study_id")
    return Record(identifier, tuple(shown), turns, extra={"task": "report"})
