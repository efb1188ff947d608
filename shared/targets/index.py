"""The index of a namespace: sorted content keys to (segment, row)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
