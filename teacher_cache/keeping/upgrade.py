"""Stores of format 1 become format 2: no teacher, no images, the arrays' bytes as they are.

What format 2 adds is what opens a segment (docs/store-format.md). E_v is not in format 1: a store
that shall be asked later (`--encoding patches`) is built anew.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.console import track
from shared.files import refused_as
from shared.targets.catalogue import publish_catalogue
from shared.targets.identity import FORMAT
from shared.targets.namespace import Namespace, create_namespace, list_namespaces
from shared.targets.opening import forget_index
from shared.targets.segment.checks import (
    keys_of,
    keys_present,
    read_segment,
    segments_with_keys,
)
from shared.targets.segment.chunks import decode_shard_index, shard_index_length
from shared.targets.segment.layout import arrays_of, chunk_path
from shared.targets.segment.manifest import MANIFEST, DamagedSegment, parse_manifest
from shared.targets.segment.writer import publish_new, with_manifest
from shared.targets.storage import Storage, open_storage
from teacher_cache.keeping.merge import copy_quarantine


class Upgraded(NamedTuple):
    """What `upgrade` did with one namespace of format 1; whether that one was removed."""

    old: str
    namespace: str
    segments: int
    records: int
    already_there: int
    removed: bool


def upgrade(root: str | Path | Storage, remove: bool = False) -> list[Upgraded]:
    """Write every namespace of format 1 anew in format 2, beside the old one.

    `remove`: the old one goes once every record of it is in the new one.

    A segment is checked byte by byte before it is written, and appears in one step; an interrupted
    upgrade is simply run again.

    Raises
    ------
    DamagedSegment
        If a segment is damaged: nothing of it is written.
    UserError
        If there is no store, or it cannot be written.
    """
    storage = open_storage(root) if isinstance(root, str | Path) else root
    old = [one for one in list_namespaces(storage) if one.identity.format < FORMAT]
    return [_upgrade(namespace, remove) for namespace in old]


def _upgrade(old: Namespace, remove: bool) -> Upgraded:
    identity = old.identity.model_copy(update={"format": FORMAT})
    into = create_namespace(old.storage, identity, old.provenance)
    present, _ = keys_present(into)
    before = len(present)
    segments = 0
    found = segments_with_keys(old)
    for segment, one in track(found, len(old.segments()), old.name, "segments"):
        if isinstance(one, DamagedSegment):
            raise one
        keys = {row.tobytes() for row in one[1]}
        if keys <= present:
            continue
        files = reopened(old, into, segment, read_segment(old, segment))
        with refused_as(f"cannot write to the store {into.storage.location}", "run upgrade again"):
            publish_new(into, files)
        segments += 1
        present |= keys
    with refused_as(f"cannot write to the store {into.storage.location}", "run upgrade again"):
        copy_quarantine(old, into, present)
        publish_catalogue(into)
        removed = remove and _remove(old)
    return Upgraded(old.name, into.name, segments, len(present) - before, before, removed)


def _remove(old: Namespace) -> bool:
    """Remove a namespace whose records are all in another, unless someone else is at work on it."""
    with old.storage.exclusive(old.name) as hold:
        if hold is None:
            return False
        old.storage.remove(old.name)
    forget_index(old)
    return True


def reopened(
    old: Namespace, into: Namespace, segment: str, files: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Return the files of a segment with a manifest of the namespace `into`."""
    manifest = parse_manifest(old, segment, files[MANIFEST])
    shapes: dict[str, tuple[int, ...]] = {}
    lengths: dict[str, NDArray[np.uint64]] = {}
    for spec in arrays_of(old.identity):
        document = json.loads(files[f"{spec.name}/zarr.json"])
        shapes[spec.name] = tuple(int(size) for size in document["shape"][1:])
        if spec.sharded:
            tail = files[chunk_path(spec)][-shard_index_length(manifest.records) :]
            lengths[spec.name] = decode_shard_index(tail, manifest.records)[:, 1]
    rows = [row.tobytes() for row in keys_of(old, segment, manifest)]
    arrays = {name: data for name, data in files.items() if name != MANIFEST}
    return with_manifest(into, arrays, rows, shapes, lengths)
