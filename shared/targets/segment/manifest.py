"""The manifest of a segment: what every file of it must be and, since format 2, what opens it.

Since format 2 it also holds the content keys, and the length of each record's chunk in each shard:
one object opens a segment, and its digest is in the segment's name.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.targets.documents import canonical_json, encode_document
from shared.targets.namespace import Namespace, digest_in
from shared.targets.segment.copies import Copies
from shared.targets.segment.layout import KEY_BYTES

MANIFEST: Final = "manifest.json"


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


class Opening(NamedTuple):
    """What opens a segment of n records.

    `keys` (n, 32); of each array beside `key` the shape of one record; of each sharded one the
    bytes of each record's chunk, (n,), in the order in which they lie in the shard.
    """

    keys: NDArray[np.uint8]
    shapes: dict[str, tuple[int, ...]]
    lengths: dict[str, NDArray[np.uint64]]


class Manifest(NamedTuple):
    """What a segment's manifest says.

    Number of records, (size in bytes, sha256) of each file, and what opens it (since format 2).
    """

    records: int
    files: dict[str, tuple[int, str]]
    opening: Opening | None = None

    @property
    def size(self) -> int:
        """Bytes of all files that it lists."""
        return sum(size for size, _ in self.files.values())


def make_manifest(
    files: Mapping[str, bytes], records: int, store_format: int, opening: Opening | None = None
) -> bytes:
    """Write the manifest of a segment.

    Size and sha256 of every other file, what opens it, and a digest of itself.
    """
    body: dict[str, object] = {
        "format": store_format,
        "records": records,
        "files": {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in sorted(files.items())
        },
    }
    if opening is not None:
        body["keys"] = base64.b64encode(opening.keys.tobytes()).decode()
        body["shapes"] = {name: list(shape) for name, shape in opening.shapes.items()}
        body["lengths"] = {name: lengths.tolist() for name, lengths in opening.lengths.items()}
    document = {**body, "digest": hashlib.sha256(canonical_json(body)).hexdigest()}
    if opening is None:
        return encode_document(document)
    return canonical_json(document) + b"\n"  # indented, each length would be a line


def parse_manifest(namespace: Namespace, segment: str, data: bytes) -> Manifest:
    """Check a manifest's digest against itself and against the segment's id, and read it.

    Raises
    ------
    DamagedSegment
        If it is not a manifest, edited, or another segment's.
    """
    try:
        document = json.loads(data)
        found = document.pop("digest")
        own = hashlib.sha256(canonical_json(document)).hexdigest()
        if own != found or not own.startswith(digest_in(segment)):
            raise DamagedSegment.of(namespace, segment, MANIFEST, "its digest differs")
        files = {
            str(name): (int(file["size"]), str(file["sha256"]))
            for name, file in document["files"].items()
        }
        opening = _opening(document) if "keys" in document else None
        return Manifest(int(document["records"]), files, opening)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedSegment.of(namespace, segment, MANIFEST, f"unreadable ({error})") from None


def _opening(document: Mapping[str, object]) -> Opening:
    shapes, lengths = document["shapes"], document["lengths"]
    if not (isinstance(shapes, dict) and isinstance(lengths, dict)):
        raise TypeError("shapes and lengths are no objects")
    keys = np.frombuffer(base64.b64decode(str(document["keys"])), np.uint8)
    return Opening(
        keys.reshape(-1, KEY_BYTES),
        {str(name): tuple(shape) for name, shape in shapes.items()},
        {str(name): np.array(values, np.uint64) for name, values in lengths.items()},
    )


def read_manifest(namespace: Namespace, segment: str) -> Manifest:
    """Read one segment's manifest; raises as `read_manifests` yields."""
    (found,) = read_manifests(namespace, [segment])
    if isinstance(found, DamagedSegment):
        raise found
    return found


def read_manifests(
    namespace: Namespace, segments: Sequence[str], copies: Copies | None = None
) -> list[Manifest | DamagedSegment]:
    """Read the manifests of segments side by side; in place of a faulty one, what is wrong.

    `copies`: this machine's, which are looked into first.
    """
    found = {} if copies is None else _copied(namespace, segments, copies)
    missing = [segment for segment in segments if segment not in found]
    paths = [namespace.path("segments", segment, MANIFEST) for segment in missing]
    for segment, data in zip(missing, namespace.storage.read_all(paths), strict=True):
        try:
            if data is None:
                raise DamagedSegment.of(namespace, segment, MANIFEST, "it is missing")
            found[segment] = parse_manifest(namespace, segment, data)
        except DamagedSegment as error:
            found[segment] = error
            continue
        if copies is not None:
            copies.write(digest_in(segment), MANIFEST, 0, data, whole=True)
    return [found[segment] for segment in segments]


def _copied(
    namespace: Namespace, segments: Sequence[str], copies: Copies
) -> dict[str, Manifest | DamagedSegment]:
    """Read this machine's copies of manifests; those that are not whole are left out."""
    found: dict[str, Manifest | DamagedSegment] = {}
    for segment in segments:
        data = copies.read(digest_in(segment), MANIFEST)
        if data:
            with suppress(DamagedSegment):
                found[segment] = parse_manifest(namespace, segment, data)
    return found
