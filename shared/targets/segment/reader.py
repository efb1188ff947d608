"""One open segment.

Its manifest checked, its shard indexes at hand, its records decoded into the caller's arrays.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.targets.namespace import Namespace, digest_in
from shared.targets.segment.checks import check_segment, keys_of, read_array_shape
from shared.targets.segment.chunks import (
    DamagedChunk,
    decode_chunk,
    decode_shard_index,
    shard_index_length,
)
from shared.targets.segment.copies import Copies
from shared.targets.segment.layout import KEY_BYTES, ArraySpec, arrays_of, chunk_path
from shared.targets.segment.manifest import (
    DamagedSegment,
    Manifest,
    read_manifest,
    read_manifests,
)
from shared.targets.storage.base import Range

_OBJECTS = 6000  # bytes of Python's objects in a reader
_COALESCE = 8 << 20  # bytes read at once where wanted chunks lie side by side


class Piece(NamedTuple):
    """A part of one array's file to fetch, and the records in it.

    `rows` and `into` are empty where it is a whole small array.
    """

    spec: ArraySpec
    place: Range
    rows: tuple[int, ...]
    into: tuple[int, ...]


class SegmentReader:
    """Reads records of one segment; holds no file open.

    A batch over several segments is fetched at once (`read_rows`).
    """

    def __init__(
        self, namespace: Namespace, segment: str, manifest: Manifest | None = None
    ) -> None:
        if namespace.identity.format == 1:
            manifest = check_segment(namespace, segment)
        elif manifest is None:
            manifest = read_manifest(namespace, segment)
        self._namespace = namespace
        self._segment = segment
        self.digest = digest_in(segment)
        self._records = manifest.records
        self._keys = keys_of(namespace, segment, manifest)
        self._specs = {
            spec.name: spec for spec in arrays_of(namespace.identity) if spec.name != "key"
        }
        self._sizes = {
            spec.name: manifest.files[chunk_path(spec)][0] for spec in self._specs.values()
        }
        self._shards: dict[str, NDArray[np.uint64]] = {}
        if manifest.opening is not None:
            self._shapes = dict(manifest.opening.shapes)
            for name, lengths in manifest.opening.lengths.items():
                ends = np.cumsum(lengths, dtype=np.uint64)
                self._shards[name] = np.stack([ends - lengths, lengths], axis=1)
        else:
            self._shapes = {
                spec.name: read_array_shape(namespace, segment, spec)[1:]
                if -1 in spec.shape
                else spec.shape
                for spec in self._specs.values()
            }
        self._small: dict[str, NDArray[np.generic]] = {}

    @property
    def size(self) -> int:
        """Bytes that it keeps in memory, about: keys, places of chunks, small arrays."""
        places = sum(16 for spec in self._specs.values() if spec.sharded)
        small = sum(
            spec.dtype.itemsize * math.prod(spec.shape)
            for spec in self._specs.values()
            if not spec.sharded
        )
        return _OBJECTS + self._records * (KEY_BYTES + places + small)

    def has(self, key: bytes, row: int) -> bool:
        """Whether `row` is the record of `key`."""
        return row < self._records and self._keys[row].tobytes() == key

    def key(self, row: int) -> bytes:
        """Content key of the record at `row`."""
        return bytes(self._keys[row])

    def arrays(self, row: int) -> dict[str, NDArray[np.generic]]:
        """Read the arrays of the image at `row`."""
        out = {
            name: np.zeros((1, *self._shapes[name]), spec.dtype)
            for name, spec in self._specs.items()
        }
        self.read([row], [0], out)
        return {name: values[0] for name, values in out.items()}

    def small(self, name: str) -> NDArray[np.generic]:
        """Read the whole of an array that is a single chunk, such as `rank`."""
        out = {name: np.zeros((self._records, *self._shapes[name]), self._specs[name].dtype)}
        self.read(range(self._records), range(self._records), out)
        return out[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one record of an array."""
        return self._shapes[name]

    def read(
        self, rows: Sequence[int], into: Sequence[int], out: Mapping[str, NDArray[np.generic]]
    ) -> None:
        """Decode the records at `rows` (ascending) of every array in `out` into its rows `into`.

        Raises
        ------
        DamagedSegment
            If the bytes of a record are not those that were written.
        """
        read_rows(self._namespace, [(self, rows, into)], out)

    def plan(self, rows: Sequence[int], into: Sequence[int], names: Sequence[str]) -> list[Piece]:
        """Say what to fetch for the records at `rows` (ascending) of the arrays named.

        Raises as `read` does.
        """
        pieces: list[Piece] = []
        for spec in (self._specs[name] for name in names):
            path = self._namespace.path("segments", self._segment, chunk_path(spec))
            if not spec.sharded:
                if spec.name not in self._small:
                    pieces.append(Piece(spec, Range(path, 0, self._sizes[spec.name]), (), ()))
                continue
            with self._naming(spec):
                index = self._shard_index(spec)
            for start, stop in _runs(rows, index):
                offset = int(index[rows[start], 0])
                place = Range(path, offset, int(index[rows[stop - 1]].sum()) - offset)
                pieces.append(Piece(spec, place, tuple(rows[start:stop]), tuple(into[start:stop])))
        return pieces

    def decode(self, piece: Piece, data: bytes, out: Mapping[str, NDArray[np.generic]]) -> None:
        """Decode what was fetched for a piece of `plan`; raises as `read` does."""
        with self._naming(piece.spec):
            self._decode(piece, data, out)

    def fill(
        self, rows: Sequence[int], into: Sequence[int], out: Mapping[str, NDArray[np.generic]]
    ) -> None:
        """Copy `rows` of the small arrays, whose pieces are decoded, to rows `into` of `out`."""
        for name, target in out.items():
            if not self._specs[name].sharded:
                values = self._small[name][np.asarray(rows, dtype=np.intp)]
                target[np.asarray(into, dtype=np.intp)] = values

    def _decode(self, piece: Piece, data: bytes, out: Mapping[str, NDArray[np.generic]]) -> None:
        spec, place = piece.spec, piece.place
        if len(data) != place.length:
            raise DamagedChunk(f"the file ends after {place.offset + len(data)} bytes")
        if not spec.sharded:
            values = np.empty((self._records, *spec.shape), dtype=spec.dtype)
            decode_chunk(data, spec, values)
            self._small[spec.name] = values
            return
        index, view = self._shards[spec.name], memoryview(data)
        window = tuple(slice(0, size) for size in self._shapes[spec.name])
        for row, into in zip(piece.rows, piece.into, strict=True):
            begin, length = (int(value) for value in index[row])
            begin -= place.offset
            decode_chunk(view[begin : begin + length], spec, out[spec.name][into][window])

    @contextmanager
    def _naming(self, spec: ArraySpec) -> Iterator[None]:
        """Name the segment and the file in what goes wrong with an array."""
        try:
            yield
        except (DamagedChunk, FileNotFoundError) as error:
            raise DamagedSegment.of(
                self._namespace, self._segment, chunk_path(spec), str(error)
            ) from None

    def fetch(self, piece: Piece) -> bytes:
        """Fetch a piece alone; raises as `read` does."""
        with self._naming(piece.spec):
            return self._namespace.storage.read_range(*piece.place)

    def _shard_index(self, spec: ArraySpec) -> NDArray[np.uint64]:
        """Return (offset, length) of each record's chunk; of format 1 the shard's end is read."""
        if spec.name not in self._shards:
            length = shard_index_length(self._records)
            size = self._sizes[spec.name]
            path = self._namespace.path("segments", self._segment, chunk_path(spec))
            tail = self._namespace.storage.read_range(path, max(0, size - length), length)
            index = decode_shard_index(tail, self._records)
            if int(index.sum(axis=1).max(initial=0)) > size:
                raise DamagedChunk("the shard's index points past its end")
            self._shards[spec.name] = index
        return self._shards[spec.name]


def open_segments(
    namespace: Namespace, segments: Sequence[str], copies: Copies | None = None
) -> list[SegmentReader]:
    """Open segments, side by side since format 2; `copies` as in `read_rows`.

    Raises
    ------
    DamagedSegment
        If one of them is.
    """
    if namespace.identity.format == 1:
        return [SegmentReader(namespace, segment) for segment in segments]
    readers = []
    found = read_manifests(namespace, segments, copies)
    for segment, manifest in zip(segments, found, strict=True):
        if isinstance(manifest, DamagedSegment):
            raise manifest
        readers.append(SegmentReader(namespace, segment, manifest))
    return readers


def read_rows(
    namespace: Namespace,
    parts: Sequence[tuple[SegmentReader, Sequence[int], Sequence[int]]],
    out: Mapping[str, NDArray[np.generic]],
    copies: Copies | None = None,
) -> None:
    """Read rows (ascending) of several segments into rows of `out`: fetched at once, then decoded.

    `copies`: this machine's copies of what is far away. They are looked into first; what does not
    decode is fetched, and copied.

    Raises
    ------
    DamagedSegment
        If the bytes of a record are not those that were written.
    """
    plans = [
        (reader, piece)
        for reader, rows, into in parts
        for piece in reader.plan(rows, into, list(out))
    ]
    wanted = [one for one in plans if copies is None or not _copied(copies, *one, out)]
    try:
        data = namespace.storage.read_ranges([piece.place for _, piece in wanted])
    except FileNotFoundError:
        data = [reader.fetch(piece) for reader, piece in wanted]  # which names the file
    for (reader, piece), part in zip(wanted, data, strict=True):
        reader.decode(piece, part, out)
        if copies is not None:
            copies.write(reader.digest, piece.spec.name, piece.place.offset, part)
    for reader, rows, into in parts:
        reader.fill(rows, into, out)


def _copied(
    copies: Copies, reader: SegmentReader, piece: Piece, out: Mapping[str, NDArray[np.generic]]
) -> bool:
    """Decode this machine's copy of a piece; False where there is none, or not all of it."""
    _, offset, length = piece.place
    data = copies.read(reader.digest, piece.spec.name, offset, length)
    try:
        reader.decode(piece, data, out)
    except DamagedSegment:
        return False
    return True


def _runs(rows: Sequence[int], index: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Group ascending rows whose chunks lie side by side into runs [start, stop).

    The length of a run in bytes is bounded.
    """
    runs: list[tuple[int, int]] = []
    start, length = 0, 0
    for position, row in enumerate(rows):
        size = int(index[row, 1])
        adjacent = position > start and int(index[rows[position - 1]].sum()) == int(index[row, 0])
        if position and not (adjacent and length + size <= _COALESCE):
            runs.append((start, position))
            start, length = position, 0
        length += size
    if len(rows):
        runs.append((start, len(rows)))
    return runs
