"""Chunks and shards without the zarr library: the fast path over the same bytes.

Zarr v3 core specification (bytes, crc32c, zstd codecs), its sharding codec (inner chunks, then an
index of (offset, length) pairs as little-endian uint64, closed by a crc32c), and numcodecs' codecs.
The tests hold every function here equal to what zarr itself reads and writes.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from shared.targets.segment.layout import ArraySpec, Codec

Values = NDArray[np.generic]
Chunk = Values | bytes | memoryview  # between two codecs of a chain
Configuration = tuple[tuple[str, object], ...]  # of a codec, so that it can be a key

_MISSING = np.uint64(2**64 - 1)


class DamagedChunk(ValueError):
    """Bytes that do not decode: a wrong checksum, a wrong length, or a hole."""


@runtime_checkable
class NumCodec(Protocol):
    """What is used of a codec of numcodecs."""

    def encode(self, buf: Chunk) -> Chunk:
        """Return what is stored of values."""

    def decode(self, buf: Chunk) -> Chunk:
        """Return the values that are stored."""


def encode_chunk(values: Values, spec: ArraySpec) -> bytes:
    """Encode one record (or a whole small array) by the array's codec chain."""
    current: Chunk = np.ascontiguousarray(values, dtype=spec.input_dtype)
    for codec in spec.codecs:
        current = _encode(current, codec)
    return bytes(current)


def decode_chunk(data: bytes | memoryview, spec: ArraySpec, out: Values) -> None:
    """Decode one chunk into `out`, a contiguous array of the array's own type.

    Raises
    ------
    DamagedChunk
        If a checksum or a length is wrong.
    """
    try:
        current: Chunk = data
        for codec in reversed(spec.codecs):
            current = _decode(current, codec)
        flat = (
            current if isinstance(current, np.ndarray) else np.frombuffer(current, dtype=spec.dtype)
        )
        out[...] = flat.view(spec.dtype).reshape(out.shape)
    except (RuntimeError, ValueError, TypeError) as error:
        raise DamagedChunk(f"array {spec.name}: {error}") from None


def _encode(current: Chunk, codec: Codec) -> Chunk:
    if codec["name"] == "bytes":
        return current
    if codec["name"] == "crc32c":
        data = bytes(current)
        return data + _crc32c(data)
    configuration = dict(codec.get("configuration", {}))
    if codec["name"] == "numcodecs.fixedscaleoffset" and isinstance(current, np.ndarray):
        configuration["dtype"] = str(current.dtype)
    return _numcodec(codec["name"], _frozen(configuration)).encode(current)


def _decode(current: Chunk, codec: Codec) -> Chunk:
    name = codec["name"]
    if name == "bytes":
        return current
    if name == "crc32c":
        data = bytes(current[:-4])
        if len(current) < 4 or _crc32c(data) != bytes(current[-4:]):
            raise DamagedChunk("checksum differs")
        return data
    configuration = _frozen(codec.get("configuration", {}))
    if name == "numcodecs.fixedscaleoffset":
        return _dequantise(configuration)[np.frombuffer(current, dtype=np.uint8)]
    return _numcodec(name, configuration).decode(current)


def _frozen(configuration: Mapping[str, object]) -> Configuration:
    return tuple(sorted(configuration.items()))


@lru_cache(maxsize=32)
def _numcodec(name: str, configuration: Configuration) -> NumCodec:
    """Make the numcodecs object behind a codec's name in zarr.json."""
    import numcodecs

    codec: NumCodec = numcodecs.get_codec(
        {"id": name.removeprefix("numcodecs."), **dict(configuration)}
    )
    return codec


@lru_cache(maxsize=8)
def _dequantise(configuration: Configuration) -> Values:
    """Tabulate what each of the 256 codes reads back as.

    A look-up is faster than arithmetic in float64.
    """
    codec = _numcodec("numcodecs.fixedscaleoffset", configuration)
    return np.asarray(codec.decode(np.arange(256, dtype=np.uint8)))


def _crc32c(data: bytes) -> bytes:
    import google_crc32c

    return int(google_crc32c.value(data)).to_bytes(4, "little")


def encode_shard(chunks: Sequence[bytes]) -> bytes:
    """Join inner chunks into one shard with its index at the end."""
    lengths = np.array([len(chunk) for chunk in chunks], dtype="<u8")
    offsets = (
        np.concatenate([np.zeros(1, "<u8"), np.cumsum(lengths)[:-1]]) if len(chunks) else lengths
    )
    index = np.stack([offsets, lengths], axis=1).astype("<u8").tobytes()
    return b"".join([*chunks, index, _crc32c(index)])


def shard_index_length(records: int) -> int:
    """Bytes of the index at the end of a shard."""
    return 16 * records + 4


def decode_shard_index(tail: bytes, records: int) -> NDArray[np.uint64]:
    """Read a shard's index: (records, 2) of offset and length in bytes.

    Raises
    ------
    DamagedChunk
        If the index is short, its checksum is wrong, or a record has no chunk.
    """
    if len(tail) != shard_index_length(records) or _crc32c(tail[:-4]) != tail[-4:]:
        raise DamagedChunk("the shard's index is damaged")
    index = np.frombuffer(tail[:-4], dtype="<u8").reshape(records, 2)
    if (index == _MISSING).any():
        raise DamagedChunk("the shard lacks a record")
    return index
