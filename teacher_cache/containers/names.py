"""Which files look like images, by their names: text, tables and litter are passed over."""

from collections.abc import Sequence
from pathlib import PurePosixPath

_TEXT = {
    ".json",
    ".jsonl",
    ".parquet",
    ".csv",
    ".tsv",
    ".txt",
    ".md",
    ".yaml",
    ".yml",
    ".xml",
    ".html",
    ".zip",
}
_LITTER = {"DICOMDIR", "Thumbs.db", "desktop.ini"}  # indexes of a folder, beside its images


def looks_like_image(parts: Sequence[str]) -> bool:
    """Whether a file may be an image, by the parts of its path below the folder searched."""
    name = PurePosixPath(parts[-1])
    hidden = any(part.startswith(".") for part in parts)
    return not hidden and name.suffix.lower() not in _TEXT and name.name not in _LITTER
