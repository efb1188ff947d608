"""One open segment.

Its manifest checked, its shard indexes at hand, its records decoded into the caller's arrays.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.targets.namespace import Namespace
from shared.targets.segment.chunks import (
    DamagedChunk,
    decode_chunk,
    decode_shard_index,
    shard_index_length,
)
from shared.targets.segment.layout import ArraySpec, arrays_of, chunk_path
from shared.targets.segment.manifest import (
    DamagedSegment,
    check_segment,
    read_array_shape,
    read_keys,
)

_COALESCE = 8 << 20  # bytes read at once where wanted chunks lie side by side


class SegmentReader:
    """Reads records of one segment; holds no file open."""

    def __init__(self, namespace: Namespace, segment: str) -> None:
        manifest = check_segment(namespace, segment)
        self._namespace = namespace
        self._segment = segment
        self._records = manifest.records
        self._keys = read_keys(namespace, segment, manifest.records)
        self._specs = {
            spec.name: spec for spec in arrays_of(namespace.identity) if spec.name != "key"
        }
        self._sizes = {
            spec.name: manifest.files[chunk_path(spec)][0] for spec in self._specs.values()
        }
        self._shapes = {
            spec.name: read_array_shape(namespace, segment, spec)[1:]
            if -1 in spec.shape
            else spec.shape
            for spec in self._specs.values()
        }
        self._shards: dict[str, NDArray[np.uint64]] = {}
        self._small: dict[str, NDArray[np.generic]] = {}

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
        for name, target in out.items():
            spec = self._specs[name]
            try:
                if spec.sharded:
                    self._read_shard(spec, rows, into, target)
                else:
                    target[np.asarray(into, dtype=np.intp)] = self._read_small(spec)[
                        np.asarray(rows, dtype=np.intp)
                    ]
            except (DamagedChunk, FileNotFoundError) as error:
                raise DamagedSegment.of(
                    self._namespace, self._segment, chunk_path(spec), str(error)
                ) from None

    def _read_shard(
        self, spec: ArraySpec, rows: Sequence[int], into: Sequence[int], out: NDArray[np.generic]
    ) -> None:
        index = self._shard_index(spec)
        shape = self._shapes[spec.name]
        window = tuple(slice(0, size) for size in shape)
        for start, stop in _runs(rows, index):
            offset = int(index[rows[start], 0])
            end = int(index[rows[stop - 1]].sum())
            data = memoryview(self._read(spec, offset, end - offset))
            for row, place in zip(rows[start:stop], into[start:stop], strict=True):
                begin, length = (int(value) for value in index[row])
                decode_chunk(
                    data[begin - offset : begin - offset + length], spec, out[place][window]
                )

    def _shard_index(self, spec: ArraySpec) -> NDArray[np.uint64]:
        if spec.name not in self._shards:
            length = shard_index_length(self._records)
            tail = self._read(spec, max(0, self._sizes[spec.name] - length), length)
            index = decode_shard_index(tail, self._records)
            if int(index.sum(axis=1).max(initial=0)) > self._sizes[spec.name]:
                raise DamagedChunk("the shard's index points past its end")
            self._shards[spec.name] = index
        return self._shards[spec.name]

    def _read_small(self, spec: ArraySpec) -> NDArray[np.generic]:
        if spec.name not in self._small:
            values = np.empty((self._records, *spec.shape), dtype=spec.dtype)
            decode_chunk(self._read(spec, 0, self._sizes[spec.name]), spec, values)
            self._small[spec.name] = values
        return self._small[spec.name]

    def _read(self, spec: ArraySpec, offset: int, length: int) -> bytes:
        path = self._namespace.path("segments", self._segment, chunk_path(spec))
        data = self._namespace.storage.read_range(path, offset, length)
        if len(data) != length:
            raise DamagedChunk(f"the file ends after {offset + len(data)} bytes")
        return data


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
