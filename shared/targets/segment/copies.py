"""Copies, on this machine, of parts of segments that lie far away: made as they are read, bounded.

A folder a segment, named by its manifest's digest, and in it a file an array: what was read lies at
the place that it has in the store, and the rest is a hole. Nothing says which parts are there. A
reader takes a part only where every chunk in it has its checksum, and a manifest only where it has
its digest: what is cut, damaged or not there yet is fetched. So any number of processes write side
by side without a lock, and all of it can be deleted at any time.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from shared.files import cache_bytes, cache_directory
from shared.targets.storage.base import TEMPORARY, Storage

_SHARE = 256  # of the limit is written between two looks at what all processes have written


class Copies:
    """At most `limit` bytes of parts of segments below `folder`, of all processes together.

    What was not used for the longest time goes first, a segment at a time. A process looks at the
    whole when it has written a 256th of the limit.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._written = 0
        self._refused = False

    def read(self, digest: str, name: str, offset: int = 0, length: int = -1) -> bytes:
        """Return what lies there of a segment's file, from `offset`; nothing vouches for it."""
        folder = self._folder / digest
        try:
            with (folder / name).open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size if length < 0 else length
                data = os.pread(file.fileno(), size, offset)
            os.utime(folder)
        except OSError:
            return b""
        return data

    def write(self, digest: str, name: str, offset: int, data: bytes, whole: bool = False) -> None:
        """Keep a part of a segment's file; nothing happens where the system refuses it.

        `whole`: it is all of the file.
        """
        if self._refused or len(data) > self._limit:
            return
        folder = self._folder / digest
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                os.pwrite(descriptor, data, offset)
                if whole:
                    os.ftruncate(descriptor, len(data))
            finally:
                os.close(descriptor)
            os.utime(folder)
        except FileNotFoundError:
            return  # another process makes room
        except OSError:
            self._refused = True  # a full disk, or a folder of someone else
            return
        self._written += len(data)
        if self._written * _SHARE >= self._limit:
            self._written = 0
            self.trim()

    def trim(self) -> None:
        """Remove the segments that were not used for the longest time, down to the limit."""
        found = sorted(self._held(), key=lambda one: one.used)
        total = sum(one.size for one in found)
        goal = self._limit - self._limit // 16  # else the next part would be one too many
        for one in found:
            if total <= goal:
                return
            gone = self._folder / f"{TEMPORARY}{uuid.uuid4().hex}"
            with suppress(OSError):  # another process was first
                (self._folder / one.name).rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
            total -= one.size

    def _held(self) -> Iterator["_Held"]:
        """Yield each segment with its size on disk, holes left out; remove what a kill left."""
        for folder in self._folder.glob("*"):
            if folder.name.startswith(TEMPORARY):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            with suppress(OSError):
                used = folder.stat().st_mtime_ns
                size = sum(512 * file.stat().st_blocks for file in folder.iterdir())
                yield _Held(folder.name, used, size)


class _Held(NamedTuple):
    name: str
    used: int  # in nanoseconds
    size: int  # in bytes


def copies_for(storage: Storage) -> Copies | None:
    """Return this machine's copies; None where a store is near, or no copies are wanted.

    Raises
    ------
    UserError
        If the limit in the environment is no number.
    """
    limit = cache_bytes() if storage.remote else 0
    return Copies(cache_directory() / "segments", limit) if limit else None
