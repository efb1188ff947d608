"""Images in a tar, as WebDataset packs them: each is read from its place, nothing is unpacked."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from shared.imaging.contained import FileState, file_state
from teacher_cache.containers.faults import (
    COMPRESSED,
    CUT,
    LARGE,
    LARGEST,
    SPARSE,
    ContainerFault,
    Faulty,
)
from teacher_cache.containers.names import looks_like_image

TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
# What WebDataset's writers keep beside an image and no ending above tells from one.
_BESIDE = (
    ".cls", ".cls2", ".id", ".index", ".inx", ".txt.gz", ".json.gz", ".npy", ".npz", ".npz.gz",
    ".pth", ".pt", ".pyd", ".pickle", ".pkl", ".mp", ".msgpack", ".msg", ".cbor", ".ten", ".tb",
    ".safetensors", ".h5", ".transcript", ".text",
)  # fmt: skip


class TarImage(NamedTuple):
    """A member of a tar: its bytes stand at `offset`."""

    tar: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.tar}#file={self.name}"

    def read(self) -> bytes:
        """Return its bytes; raises OSError where the tar cannot be read or ends before."""
        if self.size > LARGEST:
            raise ContainerFault(LARGE)
        with self.tar.open("rb", buffering=0) as file:
            file.seek(self.offset)
            data = file.read(self.size)
            while 0 < len(data) < self.size and (more := file.read(self.size - len(data))):
                data += more
        if len(data) < self.size:
            raise ContainerFault(CUT)
        return data

    def place(self) -> tuple[str, str]:
        """Return the tar, and the member by name and place: a name may come twice."""
        return str(self.tar), f"file={self.name},offset={self.offset}"

    def state(self) -> FileState | None:
        """Return the state of the tar."""
        return file_state(self.tar)


def tar_images(path: Path) -> Iterator[TarImage | Faulty]:
    """Yield the images of a tar in its order; only its headers are read.

    Members that do not look like images, and links, are passed over: what a link leads to is a
    member itself. What is cut off or damaged is one `Faulty`, so that it is told and counted.
    Raises OSError where the file cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(8)
        if head.startswith(_PACKED):
            yield Faulty(str(path), COMPRESSED)
            return
        size = file.seek(0, 2)
        file.seek(0)
        end = 0
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    # It would keep a million of them.
                    tar.members.clear()  # type: ignore[attr-defined]
                    if (image := _image_of(path, member)) is not None:
                        end = member.offset_data + member.size
                        yield image
                whole = _ends_at(file.seek(tar.offset), file.read(tarfile.BLOCKSIZE))
        except (tarfile.TarError, EOFError, ValueError):
            whole = False
        if not whole and end <= size:  # else its last image tells it
            yield Faulty(str(path), CUT)


def _image_of(path: Path, member: tarfile.TarInfo) -> TarImage | Faulty | None:
    parts = [part for part in member.name.split("/") if part not in ("", ".", "..")]
    beside = member.name.lower().endswith(_BESIDE)
    if not member.isreg() or not parts or beside or not looks_like_image(parts):
        return None
    if member.issparse():
        return Faulty(f"{path}#file={member.name}", SPARSE)
    return TarImage(path, member.name, member.offset_data, member.size)


def _ends_at(place: int, block: bytes) -> bool:
    """Whether the block at which the headers ended is the mark of the end: zeros (POSIX.1-2008)."""
    return len(block) == tarfile.BLOCKSIZE and not any(block)
