"""The index of a namespace: sorted content keys to (segment, row)."""

import mmap
from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.targets.namespace import Namespace
from shared.targets.segment.checks import check_segment, keys_of
from shared.targets.segment.layout import KEY_BYTES
from shared.targets.segment.manifest import DamagedSegment, Manifest, read_manifests

_PIECE = 64 << 10
_LOOKUPS = 1024  # at once
_RESIDENT = 32 << 20  # bytes of a mapped file that may count as this process's memory


class _Rows(NamedTuple):
    """Keys (K,), sorted, and their places (K, 2)."""

    keys: NDArray[np.bytes_]
    places: NDArray[np.uint32]


class Index(NamedTuple):
    """Sorted keys (K,) as 32-byte strings, their places (K, 2), and the segments' ids.

    A place is (segment number, row).
    """

    keys: NDArray[np.bytes_]
    places: NDArray[np.uint32]
    segments: tuple[str, ...]

    def find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Position of each key in the index, -1 where it is absent."""
        found = np.full(len(keys), -1, dtype=np.int64)
        if not len(self.keys):
            return found
        for start in range(0, len(keys), _LOOKUPS):
            some = b"".join(keys[start : start + _LOOKUPS])
            wanted = np.frombuffer(some, dtype=f"S{KEY_BYTES}")
            positions = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
            there = self.keys[positions] == wanted
            found[start : start + _LOOKUPS] = np.where(there, positions, -1)
            _release(self.keys)
        return found

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places (n, 2) at positions, (-1, -1) where a position is -1."""
        if not len(self.keys):
            return np.full((len(positions), 2), -1, dtype=np.int64)
        places = np.asarray(self.places[positions.clip(min=0)]).astype(np.int64)
        places[positions < 0] = -1
        _release(self.places)
        return places

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
    # An index drops superseded duplicates, so it can only be extended while all of its segments are
    # still there.
    reusable = known if known is not None and set(known.segments) <= numbers.keys() else None
    covered = frozenset(reusable.segments) if reusable is not None else frozenset[str]()
    new = [segment for segment in segments if segment not in covered]
    keys: list[NDArray[np.uint8]] = []
    places: list[NDArray[np.uint32]] = []
    for segment, manifest in zip(new, _manifests(namespace, new), strict=True):
        rows = keys_of(namespace, segment, manifest)
        keys.append(rows)
        numbered = np.full(len(rows), numbers[segment], dtype=np.uint32)
        places.append(np.stack([numbered, np.arange(len(rows), dtype=np.uint32)], axis=1))
    none = _Rows(np.empty(0, f"S{KEY_BYTES}"), np.empty((0, 2), np.uint32))
    added = _sorted(keys, places) if keys else none
    if reusable is None or not len(reusable.keys):
        return Index(*added, tuple(segments))
    held = reusable.places
    renumbered = np.array([numbers[segment] for segment in reusable.segments], dtype=np.uint32)
    if not np.array_equal(renumbered, np.arange(len(renumbered))):
        held = np.stack([renumbered[held[:, 0]], held[:, 1]], axis=1)
    return Index(*_merged(_Rows(reusable.keys, held), added), tuple(segments))


def _sorted(keys: Sequence[NDArray[np.uint8]], places: Sequence[NDArray[np.uint32]]) -> _Rows:
    """Sort rows by key; of those that share one, the first given stays."""
    all_keys = np.ascontiguousarray(np.concatenate(keys)).view(f"S{KEY_BYTES}").ravel()
    # Keys are digests: eight bytes of them tell nearly all apart, and are sorted much faster.
    heads = np.ascontiguousarray(all_keys.view(np.uint8).reshape(-1, KEY_BYTES)[:, :8])
    order = np.argsort(heads.view(">u8").ravel().astype(np.uint64), kind="stable")
    if (all_keys[order[1:]] < all_keys[order[:-1]]).any():
        order = np.argsort(all_keys, kind="stable")
    all_keys = all_keys[order]
    first = np.ones(len(all_keys), dtype=bool)
    first[1:] = all_keys[1:] != all_keys[:-1]
    return _Rows(all_keys[first], np.concatenate(places)[order][first])


def _merged(held: _Rows, added: _Rows) -> _Rows:
    """Put sorted rows into sorted rows, in time linear in both.

    Of two with one key that of the segment with the smaller number stays.
    """
    keys, places = held
    positions = np.searchsorted(keys, added.keys)
    nearest = positions.clip(max=len(keys) - 1)
    twice = np.asarray(keys[nearest] == added.keys)
    earlier = twice & (added.places[:, 0] < places[nearest, 0])
    if earlier.any():
        places = np.array(places)
        places[nearest[earlier]] = added.places[earlier]
    if twice.all():
        return _Rows(keys, places)
    fresh = ~twice
    return _Rows(
        np.insert(np.asarray(keys), positions[fresh], added.keys[fresh]),
        np.insert(np.asarray(places), positions[fresh], added.places[fresh], axis=0),
    )


def begin_array(file: BinaryIO, kind: str, shape: tuple[int, ...]) -> None:
    """Write the head of an .npy file of values of a type, in numpy's words, C order."""
    write: Callable[..., None] = np.lib.format.write_array_header_1_0
    write(file, {"descr": kind, "fortran_order": False, "shape": shape})


def write_pieces(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write to a file that will be mapped, 64 KiB at a time.

    Linux maps what was written at once as a whole: each look-up would count megabytes.
    """
    whole = memoryview(data).cast("B")
    for start in range(0, len(whole), _PIECE):
        file.write(whole[start : start + _PIECE])


def _release(mapped: NDArray[np.generic]) -> None:
    """Give back the pages of a large mapped file that look-ups have touched.

    Each touches sixteen pages around some twenty places: after ten thousand look-ups all of a file
    of 320 MB would count as this process's memory. The system keeps the pages at hand.
    """
    base: object = mapped.base
    if isinstance(base, mmap.mmap) and len(base) > _RESIDENT:
        base.madvise(mmap.MADV_DONTNEED)


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
