"""The index of a namespace.

Sorted content keys to (segment, row), memory-mapped from the user's cache directory.

A cache and nothing more: it can be deleted at any time, is rebuilt from the segments' keys, and
every read checks the key it led to.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.files import cache_directory
from shared.targets.namespace import Namespace
from shared.targets.segment.checks import check_segment, keys_of
from shared.targets.segment.layout import KEY_BYTES
from shared.targets.segment.manifest import DamagedSegment, Manifest, read_manifests


class Index(NamedTuple):
    """Sorted keys (K,) as 32-byte strings, their places (K, 2), and the segments' ids.

    A place is (segment number, row).
    """

    keys: NDArray[np.bytes_]
    places: NDArray[np.uint32]
    segments: tuple[str, ...]

    def find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Position of each key in the index, -1 where it is absent."""
        if not len(self.keys):
            return np.full(len(keys), -1, dtype=np.int64)
        wanted = np.frombuffer(b"".join(keys), dtype=f"S{KEY_BYTES}")
        positions = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        return np.where(self.keys[positions] == wanted, positions, -1)

    def live(self) -> set[tuple[int, int]]:
        """Return the places (segment number, row) that are read.

        A key that is stored twice is read from one of them.
        """
        return {(int(number), int(row)) for number, row in np.asarray(self.places)}


def open_index(namespace: Namespace) -> Index:
    """Map the cached index if it covers exactly the visible segments; build and cache it otherwise.

    Raises
    ------
    DamagedSegment
        If a segment that must be read for its keys is damaged.
    """
    folder = _folder(namespace)
    while True:
        segments = tuple(namespace.segments())
        cached = _load(folder)
        if cached is not None and cached.segments == segments:
            return cached
        try:
            built = build_index(namespace, segments, cached)
            break
        except DamagedSegment:
            if tuple(namespace.segments()) == segments:
                raise  # else `cache gc` has just moved records to another segment
    with suppress(OSError):  # no place for a cache: the index then lives in memory only
        _save(built, folder)
        mapped = _load(folder)
        # Another process, which saw other segments, may have written its index in between.
        if mapped is not None and mapped.segments == built.segments:
            return mapped
    return built


def build_index(namespace: Namespace, segments: Sequence[str], known: Index | None = None) -> Index:
    """Build the index from the segments' keys; those in `known` are not read again.

    Where several segments hold a key, the first in the order of ids is kept: every reader chooses
    the same one.
    """
    numbers = {segment: number for number, segment in enumerate(segments)}
    keys: list[NDArray[np.uint8]] = []
    places: list[NDArray[np.uint32]] = []
    # An index drops superseded duplicates, so it can only be extended while all of its segments are
    # still there.
    reusable = known if known is not None and set(known.segments) <= numbers.keys() else None
    covered = frozenset(reusable.segments) if reusable is not None else frozenset[str]()
    if reusable is not None and len(reusable.keys):
        keys.append(np.asarray(reusable.keys).view(np.uint8).reshape(-1, KEY_BYTES))
        renumbered = np.array([numbers[segment] for segment in reusable.segments], dtype=np.uint32)
        places.append(np.stack([renumbered[reusable.places[:, 0]], reusable.places[:, 1]], axis=1))
    new = [segment for segment in segments if segment not in covered]
    for segment, manifest in zip(new, _manifests(namespace, new), strict=True):
        rows = keys_of(namespace, segment, manifest)
        keys.append(rows)
        numbered = np.full(len(rows), numbers[segment], dtype=np.uint32)
        places.append(np.stack([numbered, np.arange(len(rows), dtype=np.uint32)], axis=1))
    if not keys:
        return Index(np.empty(0, f"S{KEY_BYTES}"), np.empty((0, 2), np.uint32), tuple(segments))
    all_keys = np.ascontiguousarray(np.concatenate(keys)).view(f"S{KEY_BYTES}").ravel()
    all_places = np.concatenate(places)
    order = np.lexsort((all_places[:, 1], all_places[:, 0], all_keys))
    all_keys, all_places = all_keys[order], all_places[order]
    first = np.ones(len(all_keys), dtype=bool)
    first[1:] = all_keys[1:] != all_keys[:-1]
    return Index(all_keys[first], all_places[first], tuple(segments))


def _manifests(namespace: Namespace, segments: Sequence[str]) -> list[Manifest]:
    """Read what opens each segment: one object since format 2, side by side."""
    if namespace.identity.format == 1:
        return [check_segment(namespace, segment) for segment in segments]
    found = []
    for manifest in read_manifests(namespace, segments):
        if isinstance(manifest, DamagedSegment):
            raise manifest
        found.append(manifest)
    return found


def forget_index(namespace: Namespace) -> None:
    """Delete the cached index, so that the next opening builds it anew."""
    shutil.rmtree(_folder(namespace), ignore_errors=True)


def _folder(namespace: Namespace) -> Path:
    location = namespace.storage.location
    if "://" not in location:
        location = str(Path(location).resolve())
    digest = hashlib.sha256(f"{location}\0{namespace.name}".encode()).hexdigest()
    return cache_directory() / "index" / digest[:32]


def _load(folder: Path) -> Index | None:
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
    return Index(keys, places, head[1]) if sound and places.dtype == np.uint32 else None


def _head(folder: Path) -> tuple[str, tuple[str, ...]] | None:
    """Read which writing of the index this is, and the segments that it covers."""
    document = json.loads((folder / "segments.json").read_bytes())
    if not isinstance(document, dict):
        return None
    return str(document.get("writing")), tuple(document.get("segments", ()))


def _save(index: Index, folder: Path) -> None:
    """Replace the cached index in one step; readers that have mapped the old one keep it."""
    writing = uuid.uuid4().hex
    draft = folder.with_name(f".tmp-{folder.name}-{writing}")
    draft.mkdir(parents=True)
    try:
        np.save(draft / "keys.npy", index.keys)
        np.save(draft / "places.npy", index.places)
        head = {"writing": writing, "segments": index.segments}
        (draft / "segments.json").write_text(json.dumps(head))
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
