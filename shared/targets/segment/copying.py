"""Copying records of a segment into another one: the bytes of their chunks as they are."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.targets.namespace import Namespace
from shared.targets.segment.checks import keys_of, read_segment
from shared.targets.segment.chunks import (
    DamagedChunk,
    decode_chunk,
    decode_shard_index,
    shard_index_length,
)
from shared.targets.segment.layout import ArraySpec, arrays_of, chunk_path
from shared.targets.segment.manifest import MANIFEST, DamagedSegment, parse_manifest
from shared.targets.segment.writer import SegmentWriter


def copy_rows(
    namespace: Namespace, segment: str, into: SegmentWriter, rows: Sequence[int] | None = None
) -> None:
    """Copy `rows` of a segment, or all, into a writer of the same namespace that lacks them.

    The segment is read whole and checked byte by byte. Where the whole segment decides how a record
    lies (`factors`, as wide as the widest, and small arrays), values are copied, not bytes.

    Raises
    ------
    DamagedSegment
        If it is damaged; nothing of it is copied.
    """
    files = read_segment(namespace, segment)
    manifest = parse_manifest(namespace, segment, files[MANIFEST])
    keys = keys_of(namespace, segment, manifest)
    chunks: dict[str, list[bytes]] = {}
    values: dict[str, NDArray[np.generic]] = {}
    try:
        for spec in arrays_of(namespace.identity):
            if spec.name == "key":
                continue
            if spec.sharded and -1 not in spec.shape:
                chunks[spec.name] = _chunks(files, spec, manifest.records)
            else:
                values[spec.name] = _values(files, spec, manifest.records)
    except DamagedChunk as error:
        raise DamagedSegment.of(namespace, segment, ".", str(error)) from None
    for row in range(manifest.records) if rows is None else rows:
        key = keys[row].tobytes()
        if key not in into:
            into.add_encoded(
                key,
                {name: found[row] for name, found in chunks.items()},
                {name: found[row] for name, found in values.items()},
            )


def _chunks(files: Mapping[str, bytes], spec: ArraySpec, records: int) -> list[bytes]:
    """Cut a shard into the chunks of its records."""
    data = files[chunk_path(spec)]
    index = decode_shard_index(data[-shard_index_length(records) :], records)
    return [data[int(begin) : int(begin) + int(length)] for begin, length in index]


def _values(files: Mapping[str, bytes], spec: ArraySpec, records: int) -> NDArray[np.generic]:
    """Decode a whole array, records first."""
    shape = json.loads(files[f"{spec.name}/zarr.json"])["shape"]
    values = np.empty(tuple(int(size) for size in shape), spec.dtype)
    if not spec.sharded:
        decode_chunk(files[chunk_path(spec)], spec, values)
        return values
    for row, chunk in zip(values, _chunks(files, spec, records), strict=True):
        decode_chunk(chunk, spec, row)
    return values
