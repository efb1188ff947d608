"""Which arrays a segment holds, their types, shapes and codec chains (docs/store-format.md)."""

from collections.abc import Mapping
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np

from shared.targets.identity import Identity, QueryIdentity
from shared.targets.numbers.triangle import triangle_length

KEY_BYTES = 32
SEGMENT_RECORDS = 256
SEGMENT_BYTES = 1 << 30  # a segment is written from memory: on a fine grid it closes earlier


class Codec(TypedDict):
    """One codec of a chain, as zarr.json writes it."""

    name: str
    configuration: NotRequired[Mapping[str, object]]


BYTES: Codec = {"name": "bytes", "configuration": {"endian": "little"}}
CRC32C: Codec = {"name": "crc32c"}
ZSTD: Codec = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}


def shuffle(element_size: int) -> Codec:
    """Group the bytes of equal significance, which makes floats compressible."""
    return {"name": "numcodecs.shuffle", "configuration": {"elementsize": element_size}}


# [-1, 1] in 256 equal steps of 1/127.5, then differences along the row (modulo 256): neighbours are
# alike.
QUANTISE: Codec = {
    "name": "numcodecs.fixedscaleoffset",
    "configuration": {"offset": -1, "scale": 127.5, "dtype": "<f2", "astype": "|u1"},
}
DELTA: Codec = {"name": "numcodecs.delta", "configuration": {"dtype": "|u1"}}


class ArraySpec(NamedTuple):
    """One array of a segment.

    `shape` is that of one record. A sharded array has one inner chunk a record in one shard file; a
    small one is a single chunk. The last axis of `factors` grows to the largest rank of its segment
    (`shape` says -1).
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    sharded: bool
    codecs: tuple[Codec, ...]
    axes: tuple[str, ...]

    @property
    def input_dtype(self) -> np.dtype[np.generic]:
        """Type of the values to encode.

        What is quantised comes as float32, for float16 would round it twice.
        """
        return np.dtype("<f4") if QUANTISE in self.codecs else self.dtype


def _spec(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    codecs: tuple[Codec, ...] = (),
) -> ArraySpec:
    sharded = bool(codecs)
    return ArraySpec(
        name, np.dtype(dtype), shape, sharded, codecs or (BYTES, CRC32C), ("record", *axes)
    )


def arrays_of(identity: Identity) -> tuple[ArraySpec, ...]:
    """List the arrays of a segment written under `identity`, `key` first."""
    targets = _targets(identity)
    return targets if identity.query is None else (*targets, *_asked(identity.query))


def _asked(query: QueryIdentity) -> tuple[ArraySpec, ...]:
    patches = query.grid[0] * query.grid[1]
    axes, chain = ("patch", "component"), (BYTES, ZSTD, CRC32C)
    return (
        _spec("query", "|i1", (patches, query.rank), axes, chain),
        _spec("query_scale", "<f4", (patches,), ("patch",), (BYTES, shuffle(4), ZSTD, CRC32C)),
    )


def _targets(identity: Identity) -> tuple[ArraySpec, ...]:
    patches = identity.patches
    if identity.encoding == "texts":
        chain = (BYTES, shuffle(4), ZSTD, CRC32C)
        words = _spec("embedding", "<f4", (identity.width or 0,), ("channel",), chain)
        return _spec("key", "|u1", (KEY_BYTES,), ("byte",)), words
    pooled = _spec("attention", "<f4", (patches,), ("patch",), (BYTES, shuffle(4), ZSTD, CRC32C))
    common = (
        _spec("key", "|u1", (KEY_BYTES,), ("byte",)),
        *((pooled,) if identity.attention == "pooled" else ()),
        _spec("coverage", "|u1", (patches,), ("patch",), (BYTES, ZSTD, CRC32C)),
    )
    if identity.encoding == "maps":
        return common
    if identity.encoding == "matrix":
        exact, quantised = (BYTES, shuffle(2), ZSTD, CRC32C), (QUANTISE, DELTA, BYTES, ZSTD, CRC32C)
        codecs = exact if identity.precision == "f16" else quantised
        return (*common, _spec("similarity", "<f2", (triangle_length(patches),), ("pair",), codecs))
    scale = _spec("scale", "<f4", (patches,), ("patch",), (BYTES, shuffle(4), ZSTD, CRC32C))
    box = _spec("box", "<f8", (4,), ("edge",))
    if identity.encoding == "patches":
        shape, axes = (patches, identity.width or 0), ("patch", "channel")
        return (
            *common, _spec("patches", "|i1", shape, axes, (BYTES, ZSTD, CRC32C)), scale, box
        )  # fmt: skip
    if identity.precision == "f16":
        factors = _spec(
            "factors",
            "<f2",
            (patches, -1),
            ("patch", "component"),
            (BYTES, shuffle(2), ZSTD, CRC32C),
        )
    else:
        factors = _spec(
            "factors", "|i1", (patches, -1), ("patch", "component"), (BYTES, ZSTD, CRC32C)
        )
    return (
        *common,
        factors,
        scale,
        _spec("rank", "<u2", (), ()),
        _spec("error", "<f4", (2,), ("grid",)),
        box,
    )


def array_document(spec: ArraySpec, shape: tuple[int, ...]) -> dict[str, object]:
    """Write the zarr.json of one array of `shape` (records first), Zarr v3 core specification."""
    codecs: list[Codec] = list(spec.codecs)
    if spec.sharded:
        codecs = [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [1, *shape[1:]],
                    "codecs": list(spec.codecs),
                    "index_codecs": [BYTES, CRC32C],
                    "index_location": "end",
                },
            }
        ]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": spec.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0 if spec.dtype.kind in "iu" else 0.0,
        "codecs": codecs,
        "attributes": {},
        "dimension_names": list(spec.axes),
        "storage_transformers": [],
    }


def chunk_path(spec: ArraySpec) -> str:
    """Name the only chunk (or shard) file of an array, relative to its segment."""
    return "/".join([spec.name, "c", *("0" for _ in spec.axes)])
