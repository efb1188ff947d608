"""The side index: content keys by path, size and times, so that unchanged files are hashed once.

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
from typing import NamedTuple

from shared.files import cache_directory
from shared.imaging.images import ImageReference

_SETTLED = 3 * 10**9  # nanoseconds; coarser than any file system's clock
_CREATE = """create table if not exists keys (
    path text, part text, size integer, modified integer, changed integer, key blob,
    primary key (path, part))"""


class _State(NamedTuple):
    size: int
    modified: int
    changed: int


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


def content_keys(
    references: Iterable[ImageReference], workers: int = 2
) -> Iterator[tuple[ImageReference, bytes | OSError]]:
    """Yield each distinct reference with its content key.

    Or with the error where its file cannot be read.

    Parameters
    ----------
    references
        Images in any order; repeated ones are yielded once.
    workers
        Threads that hash what is not remembered.
    """
    wanted = list(dict.fromkeys(references))
    with _table() as table, ThreadPoolExecutor(max(1, workers)) as pool:
        known = _Known(table)
        for start in range(0, len(wanted), 1024):
            block = wanted[start : start + 1024]
            found = [known.find(reference) for reference in block]
            unknown: dict[Path, list[str | None]] = {}
            for one, (key, _) in zip(block, found, strict=True):
                if key is None:
                    unknown.setdefault(one.path, []).append(one.part)
            # A file is read once for all of its parts that are asked for.
            hashed = {
                reference: result
                for results in pool.map(_hash, unknown, unknown.values())
                for reference, result in results
            }
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

    def find(self, reference: ImageReference) -> tuple[bytes | None, _State | None]:
        """Return the remembered key, if the file is as it was then, and the file's state now."""
        try:
            status = reference.path.stat()
        except OSError:
            return None, None
        state = _State(status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if self._table is None or not _is_text(reference):
            return None, state
        query = "select key, size, modified, changed from keys where path = ? and part = ?"
        try:
            row = self._table.execute(query, (_name(reference), reference.part or "")).fetchone()
        except sqlite3.Error:
            self._table = None
            return None, state
        return (bytes(row[0]) if row is not None and _State(*row[1:]) == state else None), state

    def remember(self, reference: ImageReference, state: _State, key: bytes) -> None:
        """Keep a key if the file has been at rest, and still is as it was before it was hashed."""
        newest = max(state.modified, state.changed)
        try:
            status = reference.path.stat()
        except OSError:
            return
        unchanged = _State(status.st_size, status.st_mtime_ns, status.st_ctime_ns) == state
        if unchanged and _is_text(reference) and time.time_ns() - newest > _SETTLED:
            self._new.append((_name(reference), reference.part or "", *state, key))

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


def _is_text(reference: ImageReference) -> bool:
    """Whether the names are UTF-8; the table holds no others, whose files are hashed each time."""
    try:
        str(reference).encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(reference: ImageReference) -> str:
    return os.path.abspath(reference.path)  # noqa: PTH100  (resolve() would follow links, at a cost for each file)


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
