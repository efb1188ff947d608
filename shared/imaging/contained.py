"""Images that are no files of their own: members of a tar, rows of a table, objects of a bucket.

What such an image is follows from its bytes, and so does its content key: it has the key of a file
with the same bytes.
"""

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from PIL import Image

from shared.imaging.images import ImageReference, open_bytes, open_image


class FileState(NamedTuple):
    """By what a file counts as unchanged; both times in nanoseconds since the epoch."""

    size: int
    modified: int
    changed: int


@runtime_checkable
class ContainedImage(Protocol):
    """An image inside a container; it is hashable, and `str` names it for a person."""

    def read(self) -> bytes:
        """Return its bytes; raises OSError where they cannot be had."""

    def place(self) -> tuple[str, str]:
        """Return the container, and which of its images this is: a name for a side index."""

    def state(self) -> FileState | None:
        """Return the state of what holds it, None where that is not there."""


AnyReference = ImageReference | ContainedImage


def open_reference(reference: AnyReference) -> Image.Image:
    """Open an image wherever it lies; raises as `open_image`."""
    if isinstance(reference, ImageReference):
        return open_image(reference)
    return open_bytes(reference.read())


def file_state(path: Path) -> FileState | None:
    """Return the state of a file, None where it cannot be asked for."""
    try:
        status = path.stat()
    except OSError:
        return None
    return FileState(status.st_size, status.st_mtime_ns, status.st_ctime_ns)
