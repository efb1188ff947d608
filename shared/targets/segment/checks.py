"""The checks that hold a segment's files to its manifest, and the walk over all segments."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.targets.namespace import Namespace
from shared.targets.segment.chunks import DamagedChunk, decode_chunk
from shared.targets.segment.layout import KEY_BYTES, ArraySpec, arrays_of, chunk_path
from shared.targets.segment.manifest import (
    MANIFEST,
    DamagedSegment,
    Manifest,
    VanishedSegment,
    read_manifest,
)

T = TypeVar("T")


def check_segment(namespace: Namespace, segment: str, shards: bool = False) -> Manifest:
    """Compare a segment's files with its manifest: all sizes, and the digests of the small files.

    Parameters
    ----------
    shards
        Also read and digest the shards, as `cache verify` does.

    Raises
    ------
    DamagedSegment
        Naming the first file that is missing, of another size or of another digest. Files that are
        not the segment's own (`.DS_Store`) are no damage.
    VanishedSegment
        If someone has removed the segment meanwhile.
    """
    large = {chunk_path(spec) for spec in arrays_of(namespace.identity) if spec.sharded}
    with _vanished(namespace, segment):
        manifest = read_manifest(namespace, segment)
        for _ in _check_files(namespace, segment, manifest, set() if shards else large):
            pass
    return manifest


def read_segment(namespace: Namespace, segment: str) -> dict[str, bytes]:
    """Read every file of a segment once, each held to the manifest.

    Raises as `check_segment` with `shards`.
    """
    with _vanished(namespace, segment):
        manifest = read_manifest(namespace, segment)
        files = dict(_check_files(namespace, segment, manifest, set()))
        files[MANIFEST] = namespace.storage.read(namespace.path("segments", segment, MANIFEST))
    return files


def foreign_files(namespace: Namespace, segment: str) -> list[str]:
    """Name files that lie in a segment and are none of its own, such as `.DS_Store`.

    They harm nothing: only what the manifest lists is read.
    """
    found = namespace.storage.sizes(namespace.path("segments", segment))
    own = read_manifest(namespace, segment).files
    return sorted(name for name in found if name not in own and name != MANIFEST)


@contextmanager
def _vanished(namespace: Namespace, segment: str) -> Iterator[None]:
    """Tell a segment that someone is removing from a damaged one."""
    try:
        yield
    except (DamagedSegment, FileNotFoundError) as error:
        if segment not in namespace.segments():
            raise VanishedSegment.of(namespace, segment, ".", "it is gone") from None
        if isinstance(error, DamagedSegment):
            raise
        raise DamagedSegment.of(namespace, segment, ".", "a file of it is gone") from None


def _check_files(
    namespace: Namespace, segment: str, manifest: Manifest, passed_over: set[str]
) -> Iterator[tuple[str, bytes]]:
    """Yield each file with its bytes, held to the manifest; of those passed over only the size."""
    found = namespace.storage.sizes(namespace.path("segments", segment))
    for name in sorted(manifest.files):
        if name not in found:
            raise DamagedSegment.of(namespace, segment, name, "it is missing")
        size, digest = manifest.files[name]
        if found[name] != size:
            raise DamagedSegment.of(
                namespace, segment, name, f"it has {found[name]} bytes, not {size}"
            )
        if name in passed_over:
            continue
        data = namespace.storage.read(namespace.path("segments", segment, name))
        if hashlib.sha256(data).hexdigest() != digest:
            raise DamagedSegment.of(namespace, segment, name, "its sha256 differs")
        yield name, data


def keys_of(namespace: Namespace, segment: str, manifest: Manifest) -> NDArray[np.uint8]:
    """Return the content keys of a segment, (records, 32); of format 1 they are read.

    Raises
    ------
    DamagedSegment
        If the chunk is missing or its checksum is wrong.
    """
    if manifest.opening is not None:
        return manifest.opening.keys
    spec = arrays_of(namespace.identity)[0]
    keys = np.empty((manifest.records, KEY_BYTES), dtype=np.uint8)
    with _vanished(namespace, segment):
        try:
            decode_chunk(
                namespace.storage.read(namespace.path("segments", segment, chunk_path(spec))),
                spec,
                keys,
            )
        except DamagedChunk as error:
            raise DamagedSegment.of(namespace, segment, chunk_path(spec), str(error)) from None
    return keys


def segments_with_keys(
    namespace: Namespace,
) -> Iterator[tuple[str, tuple[Manifest, NDArray[np.uint8]] | DamagedSegment]]:
    """Yield every visible segment with its manifest and keys (records, 32), or with its damage."""

    def read(segment: str) -> tuple[Manifest, NDArray[np.uint8]] | DamagedSegment:
        try:
            manifest = check_segment(namespace, segment)
            return manifest, keys_of(namespace, segment, manifest)
        except VanishedSegment:
            raise
        except DamagedSegment as error:
            return error

    return each_segment(namespace, read)


def each_segment(namespace: Namespace, read: Callable[[str], T]) -> Iterator[tuple[str, T]]:
    """Yield every visible segment with what `read` makes of it.

    One that vanishes meanwhile (`VanishedSegment`) is passed over, and the segments that came are
    then yielded too: `cache gc` has moved its records to one of those.
    """
    seen: set[str] = set()
    again = True
    while again:
        again = False
        for segment in namespace.segments():
            if segment in seen:
                continue
            seen.add(segment)
            try:
                found = read(segment)
            except VanishedSegment:
                again = True
                continue
            yield segment, found


def keys_present(namespace: Namespace) -> tuple[set[bytes], list[str]]:
    """Content keys of all sound segments, and one line for each damaged one.

    What a resumed build need not redo.
    """
    keys: set[bytes] = set()
    damaged: list[str] = []
    for _, found in segments_with_keys(namespace):
        if isinstance(found, DamagedSegment):
            damaged.append(str(found))
        else:
            keys.update(row.tobytes() for row in found[1])
    return keys, damaged


def read_array_shape(namespace: Namespace, segment: str, spec: ArraySpec) -> tuple[int, ...]:
    """Read an array's shape, records first, from its zarr.json (checked by the manifest)."""
    return tuple(
        json.loads(
            namespace.storage.read(namespace.path("segments", segment, spec.name, "zarr.json"))
        )["shape"]
    )
