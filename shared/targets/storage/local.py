"""Where a store's files live: a folder, behind the few operations that the store needs."""

import errno
import fcntl
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from shared.targets.storage.base import TEMPORARY, Hold, Range, join
from shared.targets.storage.lease import lease

# What file systems without hard links say to link(2), FUSE and network mounts among them.
_NO_LINKS = frozenset(
    [
        errno.EPERM,
        errno.ENOTSUP,
        errno.EOPNOTSUPP,
        errno.ENOSYS,
        errno.EXDEV,
        errno.EMLINK,
        errno.EINVAL,
    ]
)
# What file systems say that cannot flush a folder.
_NO_FLUSH = frozenset([errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF])


class LocalStorage:
    """A folder on a POSIX file system, shared or not."""

    remote = False
    youngest_stray = 0.0  # a live writer's folder is known by its lock

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = str(root)

    def names(self, folder: str, begin: str = "", known: Set[str] = frozenset()) -> list[str]:
        """Name the folders directly under `folder` from `begin` on, sorted, not temporary ones.

        [] if there is none.
        """
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(
                    entry.name
                    for entry in entries
                    if entry.name >= begin and entry.is_dir() and not entry.name.startswith(".")
                )
        except FileNotFoundError:
            return []

    def sizes(self, folder: str) -> dict[str, int]:
        """Size in bytes of every file under `folder`, by path relative to it."""
        base = self.root / folder
        found = {
            path.relative_to(base).as_posix(): path.stat().st_size
            for path in sorted(base.rglob("*"))
            if path.is_file()
            and not path.name.startswith(".nfs")  # removed, but still open on an NFS client
        }
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

    def read_all(self, paths: Sequence[str]) -> list[bytes | None]:
        """Read whole files; None where there is none."""
        found: list[bytes | None] = []
        for path in paths:
            try:
                found.append(self.read(path))
            except FileNotFoundError:
                found.append(None)
        return found

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Read parts of files; each as `read_range`."""
        return [self.read_range(*one) for one in ranges]

    def exists(self, path: str) -> bool:
        """Whether there is a file."""
        return (self.root / path).is_file()

    def create(self, path: str, data: bytes) -> bool:
        """Write a file in one step if it is absent; False, and nothing changed, if it is there."""
        target = self.root / path
        if target.exists():
            return False
        with temporary_folder(target.parent) as temporary:
            draft = temporary / target.name
            _write(draft, data)
            try:
                os.link(draft, target)  # unlike a rename, fails where the target exists
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if (
                    target.exists()
                ):  # no hard links here: a gap of microseconds, and both writers mean the same
                    return False
                draft.rename(target)
        _sync_folder(target.parent)
        return True

    def publish(self, folder: str, files: Mapping[str, bytes]) -> bool:
        """Make a new folder visible with all its files in one step; False if it is already there.

        The files are written below `.tmp-<host>-<pid>-<uuid>`, whose lock is held meanwhile,
        flushed, and renamed.
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

    def discard(self, path: str) -> None:
        """Remove one file; nothing happens where it is not there."""
        (self.root / path).unlink(missing_ok=True)

    @contextmanager
    def exclusive(self, namespace: str) -> Iterator[Hold | None]:
        """Hold a namespace against others that remove or replace parts of it; never waits.

        The lock of its `zarr.json` ends with the process; a lease where there are no locks.
        """
        descriptor = _open_to_lock(self.root / namespace / "zarr.json")
        try:
            held = _flock(descriptor)
            if held is False:
                with lease(self, join(namespace, ".lease")) as hold:
                    yield hold
            else:
                yield (lambda: True) if held else None
        finally:
            os.close(descriptor)

    def modified(self, path: str) -> float:
        """When a file was last written, in seconds since the epoch."""
        return (self.root / path).stat().st_mtime

    def sweep(self, namespace: str, older_than: float | None = None) -> list[str]:
        """Remove what dead writers left in a namespace, and name it."""
        folders = (self.root / namespace / name for name in (".", "segments", "quarantine"))
        return [
            str(path.relative_to(self.root))
            for folder in folders
            for path in _sweep(folder, older_than)
        ]


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a folder `.tmp-<host>-<pid>-<uuid>` whose lock is held until it is removed again.

    A sweeper removes a folder only while it holds that lock itself, so that live work is never
    swept.
    """
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = parent / f"{TEMPORARY}{_owner()}-{uuid.uuid4().hex}"
        folder.mkdir()
        with _lock(folder) as held:
            if held is None:
                continue
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


def _sweep(parent: Path, older_than: float | None = None) -> Iterator[Path]:
    """Remove abandoned temporary folders and files directly under `parent`, and yield each.

    Without `older_than`, only this host's folders whose lock is free: another host's locks may not
    show here.
    """
    host = socket.gethostname()
    now = _file_system_time(parent) if older_than is not None else 0.0
    for path in sorted(parent.glob(f"{TEMPORARY}*")):
        with suppress(FileNotFoundError):
            if older_than is None and not (_host_of(path.name) == host and path.is_dir()):
                continue
            if older_than is not None and now - path.stat().st_mtime <= older_than:
                continue
            if not path.is_dir():
                path.unlink()
                yield path
                continue
            with _lock(path) as held:
                if held or (held is False and older_than is not None):
                    shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                yield path


def _file_system_time(folder: Path) -> float:
    """Time by the clock that stamps the files, which may not be this machine's."""
    probe = folder / f"{TEMPORARY}{_owner()}-{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink()


def _host_of(name: str) -> str:
    """Host in `.tmp-<host>-<pid>-<uuid>`, whose own name may hold dashes.

    `node-1` is not `node`.
    """
    return name.removeprefix(TEMPORARY).rsplit("-", 2)[0]


def _owner() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


@contextmanager
def _lock(folder: Path) -> Iterator[bool | None]:
    """Hold the folder's lock.

    None where another process holds it, has just removed it, or it may not be written.

    False where the file system has no locks: work goes on, but nobody may sweep without an age.
    """
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        yield None
        return
    try:
        yield _flock(descriptor)
    finally:
        os.close(descriptor)


def _open_to_lock(path: Path) -> int:
    """Open a file to be locked: for writing where allowed, since NFS wants that."""
    try:
        return os.open(path, os.O_RDWR)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return os.open(path, os.O_RDONLY)


def _flock(descriptor: int) -> bool | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        return False
    return True if os.fstat(descriptor).st_nlink else None


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
    finally:
        os.close(descriptor)
