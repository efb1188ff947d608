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

from shared.files import cache_directory
from shared.targets.catalogue import newest_catalogue, read_catalogue
from shared.targets.index import Index, build_index
from shared.targets.namespace import Namespace
from shared.targets.segment.layout import KEY_BYTES
from shared.targets.segment.manifest import DamagedSegment

SLACK = 3_600_000  # milliseconds by which the clocks of writers may differ


class _Known(NamedTuple):
    """An index that may lack the newest segments; the catalogue that it was begun with."""

    held: Index
    base: str


def open_index(namespace: Namespace, whole: bool = False) -> Index:
    """Map the cached index if it covers exactly the visible segments; build and cache it otherwise.

    In an object store with a catalogue only what came after the known segments is listed, but for
    `whole`.

    Raises
    ------
    DamagedSegment
        If a segment that must be read for its keys is damaged.
    """
    folder = _folder(namespace)
    while True:
        cached = _load(folder)
        newest = newest_catalogue(namespace)
        base, known = newest[0] if newest else "", cached
        if newest and (cached is None or cached.base != base):
            read = read_catalogue(namespace, *newest)
            if read is None:  # damaged: it vouches for nothing
                base, whole = "", True
            else:
                known = _Known(read, base)
        segments = _segments(namespace, known, whole or not base)
        if cached is not None and cached.base == base and cached.held.segments == segments:
            return cached.held
        try:
            built = build_index(namespace, segments, None if known is None else known.held)
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


def _segments(namespace: Namespace, known: _Known | None, whole: bool) -> tuple[str, ...]:
    """List the visible segments, those after the known ones where a listing of all is long."""
    if whole or known is None or not known.held.segments or not namespace.storage.remote:
        return tuple(namespace.segments())
    last = int(known.held.segments[-1].partition("-")[0], 16)
    begin = f"{max(0, last - SLACK):012x}"
    later = namespace.segments(begin)
    before = [name for name in known.held.segments if name < begin]
    if not set(known.held.segments) <= {*before, *later}:
        return tuple(namespace.segments())  # one is gone: others may be
    return tuple(sorted({*before, *later}))


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
        keys = np.load(folder / "keys.npy", mmap_mode="r")
        places = np.load(folder / "places.npy", mmap_mode="r")
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


def _save(known: _Known, folder: Path) -> None:
    """Replace the cached index in one step; readers that have mapped the old one keep it."""
    writing = uuid.uuid4().hex
    draft = folder.with_name(f".tmp-{folder.name}-{writing}")
    draft.mkdir(parents=True)
    try:
        np.save(draft / "keys.npy", known.held.keys)
        np.save(draft / "places.npy", known.held.places)
        head = {"writing": writing, "base": known.base, "segments": known.held.segments}
        (draft / "segments.json").write_text(json.dumps(head))
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
