"""Segments: write-once bundles of records, each published in one step.

And the writer that fills a namespace.
"""

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.targets.documents import encode_document, group_document
from shared.targets.namespace import Namespace, digest_in, segment_id
from shared.targets.numbers.arrays import Arrays
from shared.targets.segment.checks import check_segment
from shared.targets.segment.chunks import encode_chunk, encode_shard
from shared.targets.segment.layout import (
    KEY_BYTES,
    ArraySpec,
    array_document,
    arrays_of,
    chunk_path,
)
from shared.targets.segment.manifest import (
    MANIFEST,
    DamagedSegment,
    Opening,
    VanishedSegment,
    make_manifest,
)

PATIENCE = 60.0  # seconds to wait for another process that changes the namespace


class NotFinite(ValueError):
    """A value of an image's arrays is not a finite number."""


class SegmentWriter:
    """Collects the records of one segment and publishes them in one step.

    Records are encoded as they come; nothing is visible, nor in the store, before `publish`.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._specs = {spec.name: spec for spec in arrays_of(namespace.identity)}
        self._keys: dict[bytes, None] = {}
        self.size = 0  # bytes in memory
        self._twins: dict[str, str] | None = None  # segments by digest, listed when first needed
        self._values = [name for name in self._specs if name != "key"]
        # Of each image: its chunk of an array, or its values where the whole segment decides.
        self._chunks: dict[str, list[bytes]] = {name: [] for name in self._values}
        self._held: dict[str, list[NDArray[np.generic]]] = {name: [] for name in self._values}

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def add(self, key: bytes, arrays: Arrays) -> None:
        """Add one image's arrays, named and shaped as `layout.arrays_of` says.

        They come without the record axis.

        Raises
        ------
        ValueError
            If a name, shape or key length is wrong, a value is not finite, or the key is already
            here.
        """
        if len(key) != KEY_BYTES or key in self._keys:
            raise ValueError(f"a key is {KEY_BYTES} bytes and added once, got {key.hex()}")
        if set(arrays) != set(self._values):
            raise ValueError(f"a record holds {sorted(self._values)}, got {sorted(arrays)}")
        prepared = {
            name: _prepare(np.asarray(values), self._specs[name]) for name, values in arrays.items()
        }
        chunks = {
            name: encode_chunk(values, self._specs[name])
            for name, values in prepared.items()
            if self._specs[name].sharded and -1 not in self._specs[name].shape
        }
        held = {name: values for name, values in prepared.items() if name not in chunks}
        self.add_encoded(key, chunks, held)

    def add_encoded(
        self, key: bytes, chunks: Mapping[str, bytes], values: Mapping[str, NDArray[np.generic]]
    ) -> None:
        """Add one image by chunks of this namespace's codecs, and values of the other arrays.

        Raises
        ------
        ValueError
            If an array is missing, or the key is already here.
        """
        if key in self._keys or {*chunks, *values} != set(self._values):
            raise ValueError(f"a record holds {sorted(self._values)} and is added once")
        # Nothing fails from here on: an image is here with all its arrays, or not at all.
        for name, chunk in chunks.items():
            self._chunks[name].append(chunk)
            self.size += len(chunk)
        for name, held in values.items():
            self._held[name].append(held)
            self.size += held.nbytes
        self._keys[key] = None

    def publish(self, held: bool = False) -> str | None:
        """Write the segment and make it visible.

        Returns its id, or None where there was nothing to write.

        The id is the time and the manifest's digest (`segment_id`); a segment that is there already
        keeps its id, and is replaced if it is damaged. The writer is empty afterwards. `held`: this
        process holds the namespace.

        Raises
        ------
        OSError
            If the disk is full or the store read-only: nothing is visible then, and the records are
            still here.
        """
        if not self._keys:
            return None
        if self._twins is None:
            self._twins = {digest_in(name): name for name in self._namespace.segments()}
        identifier = publish_new(self._namespace, self._files(), held, self._twins)
        self._keys.clear()
        self.size = 0
        for name in self._values:
            self._chunks[name].clear()
            self._held[name].clear()
        return identifier

    def _files(self) -> dict[str, bytes]:
        """Encode all files of the segment, arrays first, the group's zarr.json last."""
        count = len(self._keys)
        files: dict[str, bytes] = {}
        shape: tuple[int, ...]
        shapes: dict[str, tuple[int, ...]] = {}
        lengths: dict[str, NDArray[np.uint64]] = {}
        for name, spec in self._specs.items():
            if name == "key":
                values = np.frombuffer(b"".join(self._keys), dtype=np.uint8).reshape(
                    count, KEY_BYTES
                )
                shape, data = values.shape, encode_chunk(values, spec)
            elif not spec.sharded:
                stacked = np.stack(self._held[name])
                shape, data = stacked.shape, encode_chunk(stacked, spec)
            else:
                chunks = self._chunks[name]
                shape = (count, *spec.shape)
                if -1 in spec.shape:
                    padded = _pad(self._held[name])
                    shape, chunks = padded.shape, [encode_chunk(values, spec) for values in padded]
                lengths[name] = np.array([len(chunk) for chunk in chunks], np.uint64)
                data = encode_shard(chunks)
            shapes[name] = shape[1:]
            files[f"{name}/zarr.json"] = encode_document(array_document(spec, shape))
            files[chunk_path(spec)] = data
        group = encode_document(group_document())
        return with_manifest(
            self._namespace, {**files, "zarr.json": group}, self._keys, shapes, lengths
        )


def with_manifest(
    namespace: Namespace,
    files: Mapping[str, bytes],
    keys: Iterable[bytes],
    shapes: Mapping[str, tuple[int, ...]],
    lengths: Mapping[str, NDArray[np.uint64]],
) -> dict[str, bytes]:
    """Add the manifest to the files of a segment, and put the group's `zarr.json` last.

    Parameters
    ----------
    shapes, lengths
        As in `Opening`.
    """
    rows = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
    opening = Opening(
        rows, {name: shape for name, shape in shapes.items() if name != "key"}, dict(lengths)
    )
    store_format = namespace.identity.format
    manifest = make_manifest(files, len(rows), store_format, None if store_format == 1 else opening)
    group = files["zarr.json"]
    rest = {name: data for name, data in files.items() if name != "zarr.json"}
    return {**rest, MANIFEST: manifest, "zarr.json": group}


def publish_new(
    namespace: Namespace,
    files: Mapping[str, bytes],
    held: bool = False,
    twins: Mapping[str, str] | None = None,
) -> str:
    """Name a segment by its manifest and the time, make it visible, and return its id.

    `twins`: ids of segments by the digits of the digest in them.
    """
    digest = str(json.loads(files[MANIFEST])["digest"])
    segment = segment_id(namespace.identity.format, digest, time.time())
    segment = (twins or {}).get(digest_in(segment), segment)
    publish_files(namespace, segment, files, held)
    return segment


def publish_files(
    namespace: Namespace, segment: str, files: Mapping[str, bytes], held: bool = False
) -> bool:
    """Make a segment visible.

    False where the same one is there already, which is replaced if it is damaged. `held`: this
    process holds the namespace.

    Raises
    ------
    UserError
        If it is damaged, and another process holds the namespace for longer than a minute.
    """
    path = namespace.path("segments", segment)
    if namespace.storage.publish(path, files):
        return True
    until = time.monotonic() + PATIENCE
    while True:
        try:
            check_segment(namespace, segment, shards=True)
            return False
        except VanishedSegment:
            if namespace.storage.publish(path, files):
                return True
        except DamagedSegment:
            if _replace(namespace, segment, files, held):
                return True
        if time.monotonic() > until:
            raise UserError(
                f"{namespace.storage.location}/{path} is damaged and cannot be replaced while "
                "another process changes the store, such as `cache gc`: run the same command again "
                "when it has ended"
            )
        time.sleep(0.1)


def _replace(namespace: Namespace, segment: str, files: Mapping[str, bytes], held: bool) -> bool:
    """Put a segment in the place of its damaged self; False where another holds the namespace."""
    path = namespace.path("segments", segment)
    free = nullcontext(lambda: True) if held else namespace.storage.exclusive(namespace.name)
    with free as hold:
        if hold is None:
            return False
        try:
            check_segment(namespace, segment, shards=True)
        except VanishedSegment:
            pass
        except DamagedSegment:
            namespace.storage.remove(path)
        return namespace.storage.publish(path, files)


def _prepare(values: NDArray[np.generic], spec: ArraySpec) -> NDArray[np.generic]:
    """Check one array of a record and bring it to the stored type."""
    expected = tuple(size for size in spec.shape if size != -1)
    if values.shape[: len(expected)] != expected or values.ndim != len(spec.shape):
        raise ValueError(f"array {spec.name} has shape {values.shape}, expected {spec.shape}")
    if values.dtype.kind not in ("f" if spec.dtype.kind == "f" else "iu"):
        raise ValueError(f"array {spec.name} has type {values.dtype}, expected {spec.dtype}")
    if values.dtype != spec.input_dtype:
        converted = values.astype(spec.input_dtype)
        if spec.dtype.kind != "f" and not np.array_equal(converted, values):
            raise ValueError(f"array {spec.name} does not fit {spec.dtype}")
        values = converted
    if spec.dtype.kind == "f" and not np.isfinite(values).all():
        raise NotFinite(f"array {spec.name} holds values that are not finite numbers")
    return values.copy()


def _pad(chunks: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    """Stack matrices of different widths, zeros on the right."""
    width = max(values.shape[-1] for values in chunks)
    padded = np.zeros((len(chunks), chunks[0].shape[0], width), dtype=chunks[0].dtype)
    for row, values in zip(padded, chunks, strict=True):
        row[:, : values.shape[1]] = values
    return padded
