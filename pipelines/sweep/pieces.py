"""Files as pieces of bounded size, for a way on which large files do not go.

One compressed tar archive, cut: `cat study.tar.gz.* | tar xz` gives the files without this program.
"""

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, NamedTuple, TypedDict

from shared.console import track
from shared.errors import UserError
from shared.files import refused_as

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

LARGEST = 60 << 20  # bytes of a piece
ARCHIVE = "study.tar.gz"
_LEVEL = 1  # of gzip: float32 weights shrink little more at higher ones
_CHUNK = 1 << 20


class Piece(TypedDict):
    """A piece: its file's name, size and sha256."""

    file: str
    bytes: int
    sha256: str


class Packed(NamedTuple):
    """A file or folder, and where it goes in the archive."""

    source: Path
    name: str


def write_pieces(what: Iterable[Packed], folder: Path, largest: int = LARGEST) -> list[Piece]:
    """Write files and folders into numbered pieces of one archive; links are followed.

    Raises
    ------
    UserError
        The system refuses to read or write something.
    """
    files = sorted({one.name: one for given in what for one in _files(given)}.values(), key=_name)
    with refused_as(f"cannot pack into {folder}", "make room there or choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        with (
            _Writer(folder, largest) as pieces,
            gzip.GzipFile("", "wb", _LEVEL, pieces, mtime=0) as squeezed,
            tarfile.open(fileobj=squeezed, mode="w|", dereference=True) as archive,
        ):
            for one in track(files, len(files), "packing", "files"):
                archive.add(one.source, one.name, recursive=False, filter=_nobodys)
    return pieces.written


def _name(one: Packed) -> str:
    return one.name


def _files(given: Packed) -> Iterable[Packed]:
    """Yield the files below a folder, and its empty folders: a store has some."""
    if not given.source.is_dir():
        yield given
        return
    for place, folders, files in os.walk(given.source, followlinks=True):
        below = PurePosixPath(given.name, Path(place).relative_to(given.source).as_posix())
        if not files and not folders:
            yield Packed(Path(place), str(below))
        for name in files:
            yield Packed(Path(place, name), str(below / name))


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Take the owner out, who is another one elsewhere."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def check_pieces(folder: Path, pieces: Sequence[Piece]) -> None:
    """Compare every piece with its digest.

    Raises
    ------
    UserError
        Names the first piece that is missing or damaged.
    """
    for piece in track(pieces, len(pieces), "checking", "pieces"):
        file = folder / piece["file"]
        if not file.is_file():
            raise UserError(f"{file} is missing; copy it from where the pack was written")
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != piece["sha256"]:
            raise UserError(
                f"{file} is damaged: {file.stat().st_size} bytes, sha256 {found[:12]}, where the "
                f"pack says {piece['bytes']}, {piece['sha256'][:12]}; copy it again"
            )


def read_pieces(folder: Path, pieces: Sequence[Piece], out: Path) -> None:
    """Put the files of an archive below `out`. Only files and folders, and only there.

    Raises
    ------
    UserError
        No such archive, a member that lies elsewhere, or the system refuses.
    """
    names = [folder / piece["file"] for piece in pieces]
    with refused_as(f"cannot unpack into {out}", "make room there or choose another --work"):
        try:
            with (
                io.BufferedReader(_Reader(names), _CHUNK) as joined,
                gzip.GzipFile(mode="rb", fileobj=joined) as opened,
                tarfile.open(fileobj=opened, mode="r|") as archive,
            ):
                # Of newer Pythons: modes and owners of the archive are not taken over either.
                archive.extraction_filter = getattr(tarfile, "data_filter", _as_it_is)
                for member in archive:
                    _check(member, folder)
                    if member.isreg():  # of an unpacking that was stopped, perhaps read-only
                        (out / member.name).unlink(missing_ok=True)
                    archive.extract(member, out)
        except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
            raise UserError(f"{folder} holds no archive of this program: {error}") from None


def _as_it_is(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    return member


def _check(member: tarfile.TarInfo, folder: Path) -> None:
    path = PurePosixPath(member.name)
    if not (member.isreg() or member.isdir()) or path.is_absolute() or ".." in path.parts:
        raise UserError(f"{folder}: the archive holds {member.name!r}, which is not unpacked")


class _Writer(io.RawIOBase):
    """A file that goes on in the next piece where one is full."""

    def __init__(self, folder: Path, largest: int) -> None:
        self.folder, self.largest = folder, largest
        self.written: list[Piece] = []
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()

    def writable(self) -> bool:
        """Say yes."""
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write all of it."""
        rest = memoryview(data).cast("B")
        count = len(rest)
        while rest:
            if self._file is None:
                name = f"{ARCHIVE}.{len(self.written):04d}"
                self._file, self._digest = (self.folder / name).open("wb"), hashlib.sha256()
                self.written.append({"file": name, "bytes": 0, "sha256": ""})
            piece = self.written[-1]
            part = rest[: self.largest - piece["bytes"]]
            self._file.write(part)
            self._digest.update(part)
            piece["bytes"] += len(part)
            rest = rest[len(part) :]
            if piece["bytes"] == self.largest:
                self._end()
        return count

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self.written[-1]["sha256"] = self._digest.hexdigest()
            self._file = None

    def close(self) -> None:
        """End the last piece."""
        self._end()
        super().close()


class _Reader(io.RawIOBase):
    """The pieces as one file, read from its begin to its end."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._waiting = list(files)
        self._file: IO[bytes] | None = None

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fill a part of the buffer; 0 at the end."""
        room = memoryview(buffer)
        while True:
            found = b"" if self._file is None else self._file.read(len(room))
            if found or not self._waiting:
                room[: len(found)] = found
                return len(found)
            self._close()
            self._file = self._waiting.pop(0).open("rb")

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def close(self) -> None:
        """Close the piece that was open."""
        self._close()
        super().close()
