"""The manifest of a segment.

What every file of it must be, and the checks that hold the files to it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.targets.documents import canonical_json, encode_document
from shared.targets.identity import FORMAT
from shared.targets.namespace import Namespace
from shared.targets.segment.chunks import DamagedChunk, decode_chunk
from shared.targets.segment.layout import KEY_BYTES, ArraySpec, arrays_of, chunk_path

T = TypeVar("T")
MANIFEST = "manifest.json"


class DamagedSegment(UserError):
    """A segment whose files are not those its manifest lists.

    The message names the file and the way out. (It is the only argument, so that the exception
    crosses process borders; `of` writes it.)
    """

    @classmethod
    def of(cls, namespace: Namespace, segment: str, file: str, what: str) -> "DamagedSegment":
        """Say what is wrong with a file of a segment, and the way out."""
        return cls(
            f"damaged segment {namespace.name}/segments/{segment}: {file}: {what}; "
            f"`cache verify --store {namespace.storage.location}` lists all damage, `cache gc "
            "--damaged` drops such "
            "segments and the same `cache build` makes their records again"
        )


class VanishedSegment(DamagedSegment):
    """A segment that was removed while it was read: no damage, its records are in others."""

    @classmethod
    def of(cls, namespace: Namespace, segment: str, file: str, what: str) -> "VanishedSegment":
        """Say that the segment is gone, and the way out."""
        return cls(
            f"segment {namespace.name}/segments/{segment} was removed while it was read "
            f"({file}: {what}), as `cache gc` does: run the same command again"
        )


def make_manifest(files: Mapping[str, bytes], records: int) -> bytes:
    """Write the manifest of a segment.

    Size and sha256 of every other file, and a digest of itself.
    """
    body = {
        "format": FORMAT,
        "records": records,
        "files": {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in sorted(files.items())
        },
    }
    return encode_document({**body, "digest": hashlib.sha256(canonical_json(body)).hexdigest()})


class Manifest(NamedTuple):
    """What a segment's manifest says.

    Number of records, and (size in bytes, sha256) of each file.
    """

    records: int
    files: dict[str, tuple[int, str]]

    @property
    def size(self) -> int:
        """Bytes of all files that it lists."""
        return sum(size for size, _ in self.files.values())


def read_manifest(namespace: Namespace, segment: str) -> Manifest:
    """Read a segment's manifest and check its digest against itself and against the segment's id.

    Raises
    ------
    DamagedSegment
        If it is missing, not a manifest, edited, or another segment's.
    """
    path = namespace.path("segments", segment, MANIFEST)
    try:
        document = json.loads(namespace.storage.read(path))
        digest = document.pop("digest")
        if hashlib.sha256(canonical_json(document)).hexdigest() != digest or digest[:32] != segment:
            raise DamagedSegment.of(namespace, segment, MANIFEST, "its digest differs")
        files = {
            str(name): (int(file["size"]), str(file["sha256"]))
            for name, file in document["files"].items()
        }
        return Manifest(int(document["records"]), files)
    except FileNotFoundError:
        raise DamagedSegment.of(namespace, segment, MANIFEST, "it is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedSegment.of(namespace, segment, MANIFEST, f"unreadable ({error})") from None


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


def read_keys(namespace: Namespace, segment: str, records: int) -> NDArray[np.uint8]:
    """Read the content keys of a segment, (records, 32).

    Raises
    ------
    DamagedSegment
        If the chunk is missing or its checksum is wrong.
    """
    spec = arrays_of(namespace.identity)[0]
    keys = np.empty((records, KEY_BYTES), dtype=np.uint8)
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
            return manifest, read_keys(namespace, segment, manifest.records)
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
