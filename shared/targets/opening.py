"""Opening the index of a namespace: memory-mapped from the user's cache directory.

A cache and nothing more: it can be deleted at any time, is made again from the store's catalogue
and the segments' keys, and every read checks the key it led to.
"""

import hashlib
import json
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.files import cache_directory
from shared.targets.catalogue import newest_catalogue, read_catalogue, unpack_catalogue
from shared.targets.index import Index, begin_array, build_index, write_pieces
from shared.targets.namespace import Namespace
from shared.targets.segment.layout import KEY_BYTES
from shared.targets.segment.manifest import DamagedSegment

KEYS, PLACES = "keys.npy", "places.npy"
_MANIFEST = 20_000  # bytes of the manifest of 256 records
SLACK = 3_600_000  # milliseconds by which the clocks of writers may differ


class _Known(NamedTuple):
    """An index that may lack the newest segments; the catalogue that it was begun with."""

    held: Index
    base: str


def open_index(namespace: Namespace, whole: bool = False) -> Index:
    """Map the cached index if it covers exactly the visible segments; build and cache it otherwise.

    In an object store with a catalogue only what came after the known segments is listed, but for
    `whole`. A newer catalogue than the cached index was begun with says that segments may be gone:
    all are listed then, and what is new is read from it where that is less than their manifests.

    Raises
    ------
    DamagedSegment
        If a segment that must be read for its keys is damaged.
    """
    folder = _folder(namespace)
    while True:
        cached = _load(folder)
        newest = newest_catalogue(namespace)
        base = newest[0] if newest else ""
        if newest and cached is None:
            cached = _from_catalogue(namespace, *newest, folder)
            base = base if cached else ""  # a damaged one vouches for nothing
        held = None if cached is None else cached.held
        trusted = cached is not None and bool(base) and cached.base == base and not whole
        segments = _segments(namespace, held, trusted, strict=whole or not base)
        if cached is not None and (cached.base, cached.held.segments) == (base, segments):
            return cached.held
        if newest and held is not None and not trusted and _is_shorter(newest[1], held, segments):
            fresh = _from_catalogue(namespace, *newest, folder)
            held = fresh.held if fresh else held
        try:
            built = build_index(namespace, segments, held)
            break
        except DamagedSegment:
            if set(segments) <= set(namespace.segments()):
                raise  # else `cache gc` has just moved records to another segment
            whole = True
    with suppress(OSError):  # no place for a cache: the index then lives in memory only
        _save(_Known(built, base), folder)
        mapped = _load(folder)
        # Another process, which saw other segments, may have written its index in between.
        if mapped is not None and mapped.held.segments == built.segments:
            return mapped.held
    return built


def _segments(
    namespace: Namespace, known: Index | None, trusted: bool, strict: bool
) -> tuple[str, ...]:
    """List the visible segments, those after the known ones where a listing of all is long.

    `trusted`: none of the known ones was removed. `strict`: a known one counts only where it is
    visible, not where a part of it is there, as while `cache gc` removes it; that discards all
    catalogues first.
    """
    if known is None or not known.segments or strict or not namespace.storage.remote:
        return tuple(namespace.segments())
    held = frozenset(known.segments)
    if trusted:
        last = int(known.segments[-1].partition("-")[0], 16)
        begin = f"{max(0, last - SLACK):012x}"
        later = namespace.segments(begin, held)
        before = [name for name in known.segments if name < begin]
        if held <= {*before, *later}:
            return tuple(sorted({*before, *later}))
        # One is gone: others may be.
    return tuple(namespace.segments(known=held))


def _is_shorter(size: int, held: Index, segments: tuple[str, ...]) -> bool:
    """Whether a catalogue of `size` bytes is less to read than the manifests that an index lacks.

    An index can be extended only while all of its segments are there.
    """
    there = set(segments)
    new = len(there.difference(held.segments)) if there >= set(held.segments) else len(there)
    return new * _MANIFEST > size


def forget_index(namespace: Namespace) -> None:
    """Delete the cached index, so that the next opening builds it anew."""
    shutil.rmtree(_folder(namespace), ignore_errors=True)


def _folder(namespace: Namespace) -> Path:
    location = namespace.storage.location
    if "://" not in location:
        location = str(Path(location).resolve())
    digest = hashlib.sha256(f"{location}\0{namespace.name}".encode()).hexdigest()
    return cache_directory() / "index" / digest[:32]


def _load(folder: Path) -> _Known | None:
    """Map an index, or None where there is none that can be used."""
    try:
        head = _head(folder)
        keys = np.load(folder / KEYS, mmap_mode="r")
        places = np.load(folder / PLACES, mmap_mode="r")
        # Another process may have replaced the folder in between: one array would be of its index.
        if head is None or _head(folder) != head:
            return None
    except (OSError, ValueError, TypeError, EOFError):
        return None
    sound = keys.ndim == 1 and keys.dtype == f"S{KEY_BYTES}" and places.shape == (len(keys), 2)
    if not sound or places.dtype != np.uint32:
        return None
    return _Known(Index(keys, places, head.segments), head.base)


class _Head(NamedTuple):
    """Which writing of the index this is, its catalogue, and the segments that it covers."""

    writing: str
    base: str
    segments: tuple[str, ...]


def _head(folder: Path) -> _Head | None:
    document = json.loads((folder / "segments.json").read_bytes())
    if not isinstance(document, dict):
        return None
    segments = tuple(document.get("segments", ()))
    return _Head(str(document.get("writing")), str(document.get("base", "")), segments)


def _from_catalogue(namespace: Namespace, name: str, size: int, folder: Path) -> _Known | None:
    """Make a catalogue the cached index, in bounded memory; None where it is gone or damaged."""
    try:
        draft = _draft(folder)
        try:
            with (draft / KEYS).open("wb") as keys, (draft / PLACES).open("wb") as places:
                segments = unpack_catalogue(namespace, name, size, keys, places)
            if segments is None:
                return None
            _put(draft, folder, name, segments)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        mapped = _load(folder)
    except OSError:
        mapped = None
    if mapped is not None and mapped.base == name:
        return mapped
    read = read_catalogue(namespace, name, size)  # no place for a cache
    return None if read is None else _Known(read, name)


def _save(known: _Known, folder: Path) -> None:
    """Replace the cached index in one step; readers that have mapped the old one keep it."""
    draft = _draft(folder)
    try:
        _write(draft / KEYS, known.held.keys)
        _write(draft / PLACES, known.held.places)
        _put(draft, folder, known.base, known.held.segments)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(path: Path, values: NDArray[np.generic]) -> None:
    """Write an .npy file."""
    with path.open("wb") as file:
        begin_array(file, values.dtype.str, values.shape)
        if values.size:
            write_pieces(file, np.ascontiguousarray(values).view(np.uint8).data)


def _draft(folder: Path) -> Path:
    draft = folder.with_name(f".tmp-{folder.name}-{uuid.uuid4().hex}")
    draft.mkdir(parents=True)
    return draft


def _put(draft: Path, folder: Path, base: str, segments: tuple[str, ...]) -> None:
    head = {"writing": uuid.uuid4().hex, "base": base, "segments": segments}
    (draft / "segments.json").write_text(json.dumps(head))
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
