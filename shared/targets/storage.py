"""Where a store's files live: a folder, behind the few operations that the store needs."""

import errno
import fcntl
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

TEMPORARY = ".tmp-"


@runtime_checkable
class Storage(Protocol):
    """Files by relative path; every method raises FileNotFoundError where there is nothing."""

    location: str

    def names(self, folder: str) -> list[str]:
        """Name the folders directly under `folder`, sorted, temporary ones left out; [] if there is none."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Size in bytes of every file under `folder`, by path relative to it."""

    def read(self, path: str) -> bytes:
        """Read a whole file."""

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Read at most `length` bytes from `offset`."""

    def create(self, path: str, data: bytes) -> bool:
        """Write a file in one step if it is absent; False, and nothing changed, if it is there."""

    def publish(self, folder: str, files: Mapping[str, bytes]) -> bool:
        """Make a new folder visible with all its files in one step; False if it is already there."""

    def remove(self, folder: str) -> None:
        """Remove a folder and all below it, its `zarr.json` first, so that no reader sees half of it."""


class LocalStorage:
    """A folder on a POSIX file system, shared or not."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = str(root)

    def names(self, folder: str) -> list[str]:
        """Name the folders directly under `folder`, sorted, temporary ones left out; [] if there is none."""
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        except FileNotFoundError:
            return []

    def sizes(self, folder: str) -> dict[str, int]:
        """Size in bytes of every file under `folder`, by path relative to it."""
        base = self.root / folder
        found = {str(path.relative_to(base)): path.stat().st_size for path in sorted(base.rglob("*")) if path.is_file()}
        if not found and not base.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(base))
        return found

    def read(self, path: str) -> bytes:
        """Read a whole file."""
        return (self.root / path).read_bytes()

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Read at most `length` bytes from `offset`."""
        with (self.root / path).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file in one step if it is absent; False, and nothing changed, if it is there."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{TEMPORARY}{target.name}-{_owner()}-{uuid.uuid4().hex}")
        try:
            _write(temporary, data)
            os.link(temporary, target)  # unlike a rename, fails where the target exists
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return True

    def publish(self, folder: str, files: Mapping[str, bytes]) -> bool:
        """Make a new folder visible with all its files in one step; False if it is already there.

        The files are written below `.tmp-<host>-<pid>-<uuid>`, whose lock is held meanwhile, flushed, and renamed.
        """
        target = self.root / folder
        if target.exists():
            return False
        with temporary_folder(target.parent) as temporary:
            draft = temporary / target.name
            folders = {draft}
            for name, data in files.items():
                path = draft / name
                path.parent.mkdir(parents=True, exist_ok=True)
                folders.update(parent for parent in path.parents if parent.is_relative_to(draft))
                _write(path, data)
            for path in sorted(folders, reverse=True):
                _sync_folder(path)
            try:
                draft.rename(target)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return False
                raise
            _sync_folder(target.parent)
        return True

    def remove(self, folder: str) -> None:
        """Remove a folder and all below it: renamed out of sight first."""
        target = self.root / folder
        with temporary_folder(target.parent) as temporary:
            target.rename(temporary / target.name)


def open_storage(root: str | Path) -> Storage:
    """Choose the storage behind a `--store` argument."""
    return LocalStorage(Path(root).expanduser())


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a folder `.tmp-<host>-<pid>-<uuid>` whose lock is held until it is removed again.

    A sweeper removes a folder only while it holds that lock itself, so that live work is never swept.
    """
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = parent / f"{TEMPORARY}{_owner()}-{uuid.uuid4().hex}"
        folder.mkdir()
        lock = _lock(folder)
        if lock is not None:
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(parent: Path, older_than: float | None = None) -> Iterator[Path]:
    """Remove abandoned temporary folders and files directly under `parent`, and yield each.

    Parameters
    ----------
    older_than
        None: this host's strays whose lock is free. Seconds: also those of other hosts (whose locks cannot be
        trusted from here) that have not changed for as long.
    """
    own = f"{TEMPORARY}{socket.gethostname()}-"
    for path in sorted(parent.glob(f"{TEMPORARY}*")):
        mine = own in f"{TEMPORARY}{path.name.split(TEMPORARY, 1)[1]}"
        with suppress(FileNotFoundError):
            old = older_than is not None and time.time() - path.stat().st_mtime > older_than
            if not (mine if older_than is None else old):
                continue
            if path.is_dir():
                lock = _lock(path)
                if lock is None:
                    continue
                shutil.rmtree(path)
                os.close(lock)
            else:
                path.unlink()
            yield path


def _owner() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def _lock(folder: Path) -> int | None:
    """Take the folder's lock, or None where another process holds it or has just removed the folder."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    if os.fstat(descriptor).st_nlink == 0:
        os.close(descriptor)
        return None
    return descriptor


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def join(*parts: str) -> str:
    """Join the parts of a relative path."""
    return "/".join(part for part in parts if part)


def ensure(storage: Storage, documents: Iterable[tuple[str, bytes]]) -> None:
    """Create each file that is absent."""
    for path, data in documents:
        storage.create(path, data)
