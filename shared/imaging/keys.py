"""The side index: content keys by path, size and times, so that unchanged files are hashed once.

An image inside a tar, a table or a bucket is remembered by what holds it, likewise.

A cache in the user's cache directory, one SQLite file that processes may share; without it (no
place, no locks) every file is hashed. A file counts as unchanged while its size, modification and
change time are; one that was touched within the last seconds is not remembered, for it could change
again without a trace.
"""

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

from shared.files import cache_directory
from shared.imaging.contained import AnyReference, ContainedImage, FileState, file_state
from shared.imaging.images import ImageReference

R = TypeVar("R", bound=AnyReference)

_SETTLED = 3 * 10**9  # nanoseconds; coarser than any file system's clock
_CREATE = """create table if not exists keys (
    path text, part text, size integer, modified integer, changed integer, key blob,
    primary key (path, part))"""


def content_key(path: str | Path, part: str | None = None) -> bytes:
    """Return the 32-byte name of an image: sha256 of the file's bytes, or of bytes || 0x00 || part.

    A renamed or copied file keeps its key, and no path can be read from it. Raises OSError.
    """
    return _key_of_part(_digest(Path(path)), part)


def _digest(path: Path) -> "hashlib._Hash":
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def _key_of_part(digest: "hashlib._Hash", part: str | None) -> bytes:
    if part is None:
        return digest.digest()
    whole = digest.copy()
    whole.update(b"\0" + part.encode("utf-8", "surrogateescape"))
    return whole.digest()


def content_keys(references: Iterable[R], workers: int = 2) -> Iterator[tuple[R, bytes | OSError]]:
    """Yield each distinct reference with its content key.

    Or with the error where its file cannot be read.

    Parameters
    ----------
    references
        Images in any order; repeated ones are yielded once.
    workers
        Threads that hash what is not remembered. Of images in containers each holds one in memory.
    """
    wanted = list(dict.fromkeys(references))
    with _table() as table, ThreadPoolExecutor(max(1, workers)) as pool:
        known = _Known(table)
        for start in range(0, len(wanted), 1024):
            block = wanted[start : start + 1024]
            found = [known.find(reference) for reference in block]
            unknown = [one for one, (key, _) in zip(block, found, strict=True) if key is None]
            hashed = _hashed(unknown, pool)
            for reference, (key, state) in zip(block, found, strict=True):
                result = key if key is not None else hashed[reference]
                if key is None and state is not None and isinstance(result, bytes):
                    known.remember(reference, state, result)
                yield reference, result
            known.save()


class _Known:
    """The table behind the cache, or nothing where there is none."""

    def __init__(self, table: sqlite3.Connection | None) -> None:
        self._table = table
        self._new: list[tuple[str, str, int, int, int, bytes]] = []

    def find(self, reference: AnyReference) -> tuple[bytes | None, FileState | None]:
        """Return the remembered key, if the file is as it was then, and the file's state now."""
        state = _state(reference)
        if state is None or self._table is None or not _is_text(reference):
            return None, state
        query = "select key, size, modified, changed from keys where path = ? and part = ?"
        try:
            row = self._table.execute(query, _place(reference)).fetchone()
        except sqlite3.Error:
            self._table = None
            return None, state
        return (bytes(row[0]) if row is not None and FileState(*row[1:]) == state else None), state

    def remember(self, reference: AnyReference, state: FileState, key: bytes) -> None:
        """Keep a key if the file has been at rest, and still is as it was before it was hashed."""
        newest = max(state.modified, state.changed)
        unchanged = _state(reference) == state
        if unchanged and _is_text(reference) and time.time_ns() - newest > _SETTLED:
            self._new.append((*_place(reference), *state, key))

    def save(self) -> None:
        """Write what is new; another process in the way is no reason to fail."""
        if self._table is None or not self._new:
            return
        try:
            with self._table:
                self._table.executemany(
                    "insert or replace into keys values (?, ?, ?, ?, ?, ?)", self._new
                )
        except sqlite3.Error:
            self._table = None
        self._new = []


@contextmanager
def _table() -> Iterator[sqlite3.Connection | None]:
    path = cache_directory() / "keys.sqlite"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=5)
    except (OSError, sqlite3.Error):
        yield None
        return
    with closing(connection):
        try:
            with connection:
                connection.execute(_CREATE)
        except sqlite3.Error:  # damaged, locked for long, or read-only: do without
            yield None
            return
        yield connection


def _is_text(reference: AnyReference) -> bool:
    """Whether the names are UTF-8; the table holds no others, whose files are hashed each time."""
    try:
        str(reference).encode()
    except UnicodeEncodeError:
        return False
    return True


def _state(reference: AnyReference) -> FileState | None:
    if isinstance(reference, ImageReference):
        return file_state(reference.path)
    return reference.state()


def _place(reference: AnyReference) -> tuple[str, str]:
    """Return path and part under which the table holds it."""
    if isinstance(reference, ImageReference):
        # resolve() would follow links, at a cost for each file
        return os.path.abspath(reference.path), reference.part or ""  # noqa: PTH100
    place, which = reference.place()
    return (place if "://" in place else os.path.abspath(place)), which  # noqa: PTH100


def _hashed(
    references: Sequence[AnyReference], pool: ThreadPoolExecutor
) -> dict[AnyReference, bytes | OSError]:
    """Hash images in threads; a file is read once for all of its parts that are asked for."""
    files: dict[Path, list[str | None]] = {}
    contained: list[ContainedImage] = []
    for one in references:
        if isinstance(one, ImageReference):
            files.setdefault(one.path, []).append(one.part)
        else:
            contained.append(one)
    hashed: dict[AnyReference, bytes | OSError] = {
        reference: result
        for results in pool.map(_hash, files, files.values())
        for reference, result in results
    }
    hashed.update(zip(contained, pool.map(_hash_contained, contained), strict=True))
    return hashed


def _hash_contained(reference: ContainedImage) -> bytes | OSError:
    try:
        return hashlib.sha256(reference.read()).digest()
    except OSError as error:
        return error


def _hash(path: Path, parts: Sequence[str | None]) -> list[tuple[ImageReference, bytes | OSError]]:
    """Return the keys of some parts of one file, which is read once."""
    references = [ImageReference(path, part) for part in parts]
    try:
        if len(references) == 1:
            return [(references[0], content_key(*references[0]))]
        digest = _digest(path)
    except OSError as error:
        return [(reference, error) for reference in references]
    return [(reference, _key_of_part(digest, reference.part)) for reference in references]
