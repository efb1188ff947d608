"""The catalogue of a namespace: all keys and segments in one object, for a host that has no index.

It is written at the end of a build, never changed, and named by its content. Readers take the
newest one and list only the segments that came after it. It is a cache that the store carries:
losing it loses nothing, and publishing it needs no lock. What removes segments (`cache gc`)
discards it first, so that none names a segment that is gone.

K keys, n segments.
"""

import hashlib
import json
import time
from typing import BinaryIO, NamedTuple

import numpy as np

from shared.targets.documents import canonical_json
from shared.targets.index import Index, begin_array, build_index, write_pieces
from shared.targets.namespace import (
    CATALOGUE,
    Namespace,
    catalogue_files,
    catalogue_name,
    is_catalogue,
    named_by,
)
from shared.targets.segment.layout import KEY_BYTES
from shared.targets.storage.base import Range

AFTER = 16  # segments that are not in it make a new one
_PART = 8 << 20  # bytes of one request
_AT_ONCE = 4  # parts in memory
_KEPT = 2  # a reader may be at work on the one before


def read_catalogue(namespace: Namespace, name: str, size: int) -> Index | None:
    """Read a catalogue of `size` bytes by parallel ranges; None where it is gone or damaged."""
    path = namespace.path(CATALOGUE, name)
    starts = range(0, size, _PART)
    try:
        parts = namespace.storage.read_ranges([Range(path, start, _PART) for start in starts])
    except FileNotFoundError:
        return None
    data = b"".join(parts)
    return _decode(data) if is_catalogue(data, name) else None


def unpack_catalogue(
    namespace: Namespace, name: str, size: int, keys: BinaryIO, places: BinaryIO
) -> tuple[str, ...] | None:
    """Write keys and places of a catalogue of `size` bytes as two .npy files, in bounded memory.

    Returns the ids of its segments; None where it is gone or damaged, whatever has been written.

    Raises
    ------
    OSError
        If the files cannot be written.
    """
    path = namespace.path(CATALOGUE, name)
    digest, line, head = hashlib.sha256(), b"", _Head(0, ())
    left = 0  # bytes of keys that are still to come
    for start in range(0, size, _AT_ONCE * _PART):
        stop = min(size, start + _AT_ONCE * _PART)
        ranges = [Range(path, begin, _PART) for begin in range(start, stop, _PART)]
        try:
            parts = namespace.storage.read_ranges(ranges)
        except FileNotFoundError:
            return None
        for part in parts:
            digest.update(part)
            rest = memoryview(part)
            if not left and not head.segments:
                line += part
                if b"\n" not in part:
                    continue
                line, _, data = line.partition(b"\n")
                try:
                    head = _head(line)
                except (ValueError, KeyError, TypeError):
                    return None
                rest, left = memoryview(data), head.records * KEY_BYTES
                begin_array(keys, f"|S{KEY_BYTES}", (head.records,))
                begin_array(places, "<u4", (head.records, 2))
            write_pieces(keys, rest[:left])
            write_pieces(places, rest[left:])
            left = max(0, left - len(rest))
    return head.segments if named_by(digest.hexdigest(), name) else None


def newest_catalogue(namespace: Namespace) -> tuple[str, int] | None:
    """Return name and size in bytes of the newest catalogue; None where there is none."""
    held = catalogue_files(namespace)
    return next(reversed(held.items()), None)


def publish_catalogue(namespace: Namespace, force: bool = False) -> str | None:
    """Write a catalogue where the newest one lacks `AFTER` segments; return its name.

    `force`: where it lacks one.

    Raises
    ------
    DamagedSegment
        If a segment is.
    """
    if namespace.identity.format == 1:
        return None
    held = list(catalogue_files(namespace).items())
    known = read_catalogue(namespace, *held[-1]) if held else None
    segments = namespace.segments()
    if known is not None and not set(known.segments) <= set(segments):
        # A build wrote it while `cache gc` was at work: it names what is gone.
        discard_catalogues(namespace)
        held, known = [], None
    new = set(segments).difference(known.segments if known is not None else ())
    if len(new) < (1 if force else AFTER):
        return None
    data = _encode(build_index(namespace, segments, known))
    name = catalogue_name(data, time.time())
    namespace.storage.create(namespace.path(CATALOGUE, name), data)
    if not set(segments) <= set(namespace.segments()):
        # `cache gc` was at work meanwhile.
        namespace.storage.discard(namespace.path(CATALOGUE, name))
        return None
    for old, _ in held[: 1 - _KEPT]:
        namespace.storage.discard(namespace.path(CATALOGUE, old))
    return name


def discard_catalogues(namespace: Namespace) -> None:
    """Remove every catalogue, before segments are removed."""
    for name in catalogue_files(namespace):
        namespace.storage.discard(namespace.path(CATALOGUE, name))


def _encode(index: Index) -> bytes:
    """Return the catalogue's bytes: a line of JSON, the keys (K, 32), the places (K, 2) uint32."""
    head = {"format": 2, "records": len(index.keys), "segments": list(index.segments)}
    keys = np.ascontiguousarray(index.keys).tobytes()
    places = np.ascontiguousarray(index.places, dtype="<u4").tobytes()
    return canonical_json(head) + b"\n" + keys + places


def _decode(data: bytes) -> Index:
    line, _, rest = data.partition(b"\n")
    count, segments = _head(line)
    keys = np.frombuffer(rest, f"S{KEY_BYTES}", count)
    places = np.frombuffer(rest, "<u4", 2 * count, count * KEY_BYTES).reshape(-1, 2)
    return Index(keys, places.astype(np.uint32), segments)


class _Head(NamedTuple):
    """Number of keys, and the ids of the segments."""

    records: int
    segments: tuple[str, ...]


def _head(line: bytes) -> _Head:
    head = json.loads(line)
    return _Head(int(head["records"]), tuple(map(str, head["segments"])))
