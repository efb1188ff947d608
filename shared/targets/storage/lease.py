"""A lock for places that have none: a file that one process creates and renews while it works."""

import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from shared.targets.storage.base import Hold, Storage, join

STALE = 3600.0  # seconds without renewal after which its process counts as dead


@contextmanager
def lease(storage: Storage, path: str) -> Iterator[Hold | None]:
    """Hold the file `path`; None where another process holds it.

    A process that was killed leaves its lease behind; after an hour without renewal the next one
    takes it over.
    """
    mine = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}\n".encode()
    if not storage.create(path, mine):
        if not _stale(storage, path):
            yield None
            return
        storage.discard(path)
        if not storage.create(path, mine):
            yield None
            return

    renewed = time.monotonic()

    def hold() -> bool:
        nonlocal renewed
        if time.monotonic() - renewed > STALE / 4 and _holds(storage, path, mine):
            storage.discard(path)
            storage.create(path, mine)
            renewed = time.monotonic()
        return _holds(storage, path, mine)

    try:
        yield hold if hold() else None
    finally:
        if _holds(storage, path, mine):
            storage.discard(path)


def _holds(storage: Storage, path: str, mine: bytes) -> bool:
    try:
        return storage.read(path) == mine
    except FileNotFoundError:
        return False


def _stale(storage: Storage, path: str) -> bool:
    try:
        return _age(storage, path) > STALE
    except FileNotFoundError:
        return True


def _age(storage: Storage, path: str) -> float:
    """Seconds since the lease was written, by the clock that stamps the files."""
    folder, _, _ = path.rpartition("/")
    probe = join(folder, f".lease-clock-{uuid.uuid4().hex}")
    storage.create(probe, b"")
    try:
        return storage.modified(probe) - storage.modified(path)
    finally:
        with suppress(OSError):
            storage.discard(probe)
