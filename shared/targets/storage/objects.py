"""A store in an object store (`s3://bucket/prefix`), through zarr's own store layer over obstore.

There is no rename there: a folder becomes visible with its `zarr.json`, which is written last and
removed first. Credentials and endpoint come from the environment as everywhere
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...).
"""

import asyncio
import os
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol, TypedDict, TypeVar, runtime_checkable

from shared.errors import UserError
from shared.targets.storage.base import TEMPORARY, Hold, Range, join
from shared.targets.storage.lease import lease

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")
GROUP = "zarr.json"
_AT_ONCE = 32  # requests under way
_OBJECTS = 8  # of a segment, at least
_ATTEMPTS = 3  # at an upload of which a sweep takes parts
_SCHEMES = ("s3://", "gs://", "az://", "memory://")


class Listed(TypedDict):
    """What is read of an object in obstore's listing."""

    path: str
    size: int
    last_modified: datetime


@runtime_checkable
class Buffer(Protocol):
    """What is read of zarr's buffers."""

    def to_bytes(self) -> bytes:
        """Return its bytes."""


@runtime_checkable
class ZarrStore(Protocol):
    """What is used of zarr's `ObjectStore`."""

    store: "ObjectStore"  # obstore's own

    def get(
        self, key: str, prototype: object, byte_range: object
    ) -> "Coroutine[object, None, Buffer | None]":
        """Read an object, or a part of it; None where there is none."""

    def set(self, key: str, value: Buffer) -> "Coroutine[object, None, None]":
        """Write an object."""

    def exists(self, key: str) -> "Coroutine[object, None, bool]":
        """Whether there is an object."""

    def delete(self, key: str) -> "Coroutine[object, None, None]":
        """Remove an object."""


class ObjectStorage:
    """Objects under one prefix of a bucket."""

    remote = True
    youngest_stray = 3600.0  # an upload shows no sign of life but the age of its youngest object

    def __init__(self, location: str) -> None:
        scheme, mark, path = location.partition("://")
        self.location = f"{scheme}{mark}{path.rstrip('/')}"
        self._process = os.getpid()
        self._store = _zarr_store(connect(self.location))

    def names(self, folder: str, begin: str = "", known: Set[str] = frozenset()) -> list[str]:
        """Name the visible folders directly under `folder`: those that have their `zarr.json`.

        From `begin` on; nothing before it is listed. Where most folders are `known`, folders are
        listed instead of objects, and only the others are asked for their `zarr.json`.
        """
        suffix = f"/{GROUP}"
        if known and len(known) < _OBJECTS * sum(name >= begin for name in known):
            folders = [name for name in self._folders(folder) if name >= begin]
            new = [name for name in folders if name not in known]
            visible = self._are_there([join(folder, name, GROUP) for name in new])
            hidden = {name for name, there in zip(new, visible, strict=True) if not there}
            return sorted(name for name in folders if name not in hidden)
        with self._talk():
            if not folder:  # a listing of everything would be long; namespaces are few
                prefixes = self._folders("")
                there = self._are_there([f"{path}{suffix}" for path in prefixes])
                return sorted(path for path, one in zip(prefixes, there, strict=True) if one)
            start = len(folder) + 1
            found = (str(item["path"])[start:] for item in self._list(folder, begin))
            paths = [path.removesuffix(suffix) for path in found if path.endswith(suffix)]
        return sorted(path for path in paths if path and "/" not in path)

    def sizes(self, folder: str) -> dict[str, int]:
        """Size in bytes of every object under `folder`, by path relative to it."""
        with self._talk():
            found = self._sizes(folder)
        if not found:
            raise FileNotFoundError(f"nothing under {self.location}/{folder}")
        return found

    def read(self, path: str) -> bytes:
        """Read a whole object."""
        return self._get(path, None)

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Read at most `length` bytes from `offset`."""
        from zarr.abc.store import RangeByteRequest

        return self._get(path, RangeByteRequest(offset, offset + length)) if length else b""

    def read_all(self, paths: Sequence[str]) -> list[bytes | None]:
        """Read whole objects side by side; None where there is none."""
        return self._get_all([(path, None) for path in paths])

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Read parts of objects side by side; each as `read_range`."""
        from zarr.abc.store import RangeByteRequest

        wanted = [one for one in ranges if one.length]
        parts = self._get_all(
            [(one.path, RangeByteRequest(one.offset, one.offset + one.length)) for one in wanted]
        )
        found = dict(zip(wanted, parts, strict=True))
        for one, data in found.items():
            if data is None:
                raise FileNotFoundError(f"no object {self.location}/{one.path}")
        return [found.get(one) or b"" for one in ranges]

    def exists(self, path: str) -> bool:
        """Whether there is an object."""
        with self._talk():
            return bool(_wait(self._store.exists(path)))

    def create(self, path: str, data: bytes) -> bool:
        """Write an object if it is absent; the server decides between two writers."""
        import obstore

        with self._talk():
            try:
                obstore.put(self._store.store, path, data, mode="create")
            except obstore.exceptions.AlreadyExistsError:
                return False
        return True

    def publish(self, folder: str, files: Mapping[str, bytes]) -> bool:
        """Write all objects of a folder, its `zarr.json` last; False if that is already there.

        What was written is listed at the end, since a sweep with too small an age may have taken
        objects of an upload under way.

        Raises
        ------
        OSError
            Objects vanish as often as they are written.
        """
        if self.exists(join(folder, GROUP)):
            return False
        wanted = {name: len(data) for name, data in files.items()}
        for _ in range(_ATTEMPTS):
            with self._talk():
                for name in sorted(files, key=lambda name: name == GROUP):
                    _wait(self._store.set(join(folder, name), _buffer(files[name])))
                found = self._sizes(folder)
            if wanted.items() <= found.items():
                return True
        raise OSError(
            f"objects under {self.location}/{folder} vanish while they are written: something "
            "removes them, such as `cache gc` with a small --older-than"
        )

    def remove(self, folder: str) -> None:
        """Remove all objects under a folder, its `zarr.json` first."""
        names = sorted(self.sizes(folder), key=lambda name: name != GROUP)
        with self._talk():
            for name in names:
                _wait(self._store.delete(join(folder, name)))

    def discard(self, path: str) -> None:
        """Remove one object; nothing happens where it is not there."""
        with self._talk(), suppress(FileNotFoundError):
            _wait(self._store.delete(path))

    @contextmanager
    def exclusive(self, namespace: str) -> Iterator[Hold | None]:
        """Hold a namespace by a lease object, against others that remove or replace parts of it."""
        with lease(self, join(namespace, ".lease")) as hold:
            yield hold

    def modified(self, path: str) -> float:
        """When an object was last written, in seconds since the epoch."""
        import obstore

        with self._talk():
            return float(obstore.head(self._store.store, path)["last_modified"].timestamp())

    def sweep(self, namespace: str, older_than: float | None = None) -> list[str]:
        """Remove the objects of segments that never became visible.

        Those whose youngest is older than `older_than`.

        Nothing tells a dead writer's objects from a live one's but their age: without it, none are
        removed.
        """
        if older_than is None:
            return []
        folder = join(namespace, "segments")
        with self._talk():
            youngest: dict[str, float] = {}
            visible: set[str] = set()
            for item in self._list(folder):
                name, _, rest = str(item["path"])[len(folder) + 1 :].partition("/")
                if rest == GROUP:
                    visible.add(name)
                if rest:
                    youngest[name] = max(youngest.get(name, 0.0), item["last_modified"].timestamp())
            now = self._server_time(namespace)
        dead: list[str] = []
        for name, when in sorted(youngest.items()):
            path = join(folder, name)
            if name in visible or now - when <= older_than or self.exists(join(path, GROUP)):
                continue  # the last: it became visible since it was listed
            self.remove(path)
            dead.append(path)
        return dead

    def _server_time(self, namespace: str) -> float:
        """Time by the clock that stamps the objects, which may not be this machine's."""
        import obstore

        probe = join(namespace, f"{TEMPORARY}clock-{uuid.uuid4().hex}")
        obstore.put(self._store.store, probe, b"")
        try:
            return float(obstore.head(self._store.store, probe)["last_modified"].timestamp())
        finally:
            obstore.delete(self._store.store, probe)

    def _folders(self, folder: str) -> list[str]:
        """Name all folders directly under a folder, visible or not: a thousand come at a time."""
        import obstore

        start = len(folder) + 1 if folder else 0
        with self._talk():
            found = obstore.list_with_delimiter(self._store.store, folder or None)
        return [str(path)[start:] for path in found["common_prefixes"]]

    def _are_there(self, paths: Sequence[str]) -> list[bool]:
        """Ask for objects side by side."""

        async def ask(path: str, free: asyncio.Semaphore) -> bool:
            async with free:
                return await self._store.exists(path)

        async def ask_all() -> list[bool]:
            free = asyncio.Semaphore(_AT_ONCE)
            return await asyncio.gather(*(ask(path, free) for path in paths))

        with self._talk():
            return _wait(ask_all()) if paths else []

    def _sizes(self, folder: str) -> dict[str, int]:
        return {
            str(item["path"])[len(folder) + 1 :]: int(item["size"]) for item in self._list(folder)
        }

    def _list(self, folder: str, begin: str = "") -> Iterator[Listed]:
        import obstore

        # The server begins after this name.
        offset = f"{folder}/{begin}" if begin else None
        for batch in obstore.list(self._store.store, prefix=f"{folder}/", offset=offset):
            yield from batch

    def _get(self, path: str, byte_range: object) -> bytes:
        (found,) = self._get_all([(path, byte_range)])
        if found is None:
            raise FileNotFoundError(f"no object {self.location}/{path}")
        return found

    def _get_all(self, wanted: Sequence[tuple[str, object]]) -> list[bytes | None]:
        """Read objects, or parts of them, `_AT_ONCE` at a time; None where there is none."""
        from zarr.core.buffer import default_buffer_prototype

        async def get(path: str, byte_range: object, free: asyncio.Semaphore) -> Buffer | None:
            async with free:
                return await self._store.get(path, default_buffer_prototype(), byte_range)

        async def get_all() -> list[Buffer | None]:
            free = asyncio.Semaphore(_AT_ONCE)
            return await asyncio.gather(*(get(*one, free) for one in wanted))

        with self._talk():
            return [None if one is None else bytes(one.to_bytes()) for one in _wait(get_all())]

    @contextmanager
    def _talk(self) -> Iterator[None]:
        """Speak of every failure of the connection as an OSError; refuse to hang after a fork."""
        import obstore

        if os.getpid() != self._process:
            raise UserError(
                "the connection to an object store does not survive a fork: give the DataLoader "
                "multiprocessing_context='spawn' (or 'forkserver')"
            )
        try:
            yield
        except FileNotFoundError:
            raise
        except obstore.exceptions.BaseError as error:
            raise OSError(f"{self.location}: {_first_line(error)}") from error


def connect(location: str) -> "ObjectStore":
    """Open the bucket and prefix of a URL.

    Raises
    ------
    UserError
        The library for it is not installed, or it is no URL of a bucket.
    """
    try:
        import obstore.store
    except ImportError:
        raise UserError(f"{location} needs the extra `s3`: pip install 'medalign[s3]'") from None
    if not location.startswith(_SCHEMES):
        raise UserError(
            f"cannot open a store at {location}: use a folder or one of {', '.join(_SCHEMES)}"
        )
    options: dict[str, object] = {
        "retry_config": {"max_retries": 5, "retry_timeout": timedelta(minutes=1)}
    }
    if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        options["client_options"] = {"allow_http": True}
    try:
        make: Callable[..., ObjectStore] = obstore.store.from_url
        return make(location, **({} if location.startswith("memory://") else options))
    except obstore.exceptions.BaseError as error:
        raise UserError(f"cannot open a store at {location}: {_first_line(error)}") from error


def _zarr_store(place: "ObjectStore") -> ZarrStore:
    from zarr.storage import ObjectStore

    store: ZarrStore = ObjectStore(place)
    return store


def _wait(operation: Coroutine[object, None, T]) -> T:
    """Run one of zarr's asynchronous store operations to its end."""
    from zarr.core.sync import sync

    result: T = sync(operation)
    return result


def _buffer(data: bytes) -> Buffer:
    from zarr.core.buffer import default_buffer_prototype

    buffer: Buffer = default_buffer_prototype().buffer.from_bytes(data)
    return buffer


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
