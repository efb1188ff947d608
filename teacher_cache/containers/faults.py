"""Why an image of a container cannot be read, as numbers that ranks can tell each other.

They lie above every errno of Linux, and within a byte.
"""

import os
from typing import NamedTuple

from shared.imaging.contained import FileState

LARGEST = 1 << 30  # bytes of an image in a container, which is in memory as a whole
COMPRESSED, CUT, SPARSE, TABLE, LISTS, NO_BYTES, REFUSED, LARGE = range(200, 208)
REASONS = {
    COMPRESSED: "a compressed tar, in which no image can be read alone: unpack it to .tar",
    CUT: "the tar is cut or damaged here: fetch it again",
    SPARSE: "the tar holds it as a sparse file: pack it again with plain files",
    TABLE: "the parquet file is damaged here: fetch it again",
    LISTS: "a column of lists of images, which is not read: write one image a row",
    NO_BYTES: "the row names a file and does not hold its bytes: pass the folder of the files",
    LARGE: "more than 1 GiB, which only a file of its own may have: take it out of there",
    REFUSED: "the object store refuses it or does not answer",
}


class ContainerFault(OSError):
    """An image of a container cannot be read; `errno` is one of the numbers here, or an errno."""

    def __init__(self, code: int) -> None:
        super().__init__(code, reason_of(code))


def reason_of(code: int) -> str:
    """Say what a number means: one of the faults here, or an errno."""
    return REASONS.get(code) or os.strerror(code)


class Faulty(NamedTuple):
    """What stands for images that a container lost, so that they are told and counted."""

    name: str
    code: int

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """Raise the fault."""
        raise ContainerFault(self.code)

    def place(self) -> tuple[str, str]:
        """Return its name."""
        return self.name, ""

    def state(self) -> FileState | None:
        """Return None: nothing of it is remembered."""
        return None
