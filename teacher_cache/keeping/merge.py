"""Joining stores: segments are copied as they are, nothing is encoded again."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from shared.files import refused_as
from shared.targets.namespace import (
    Namespace,
    create_namespace,
    list_namespaces,
    quarantine_files,
    read_quarantined,
)
from shared.targets.segment.manifest import check_segment, keys_present, read_keys
from shared.targets.segment.writer import publish_files


class Merged(NamedTuple):
    """What `merge` did in one namespace."""

    namespace: str
    segments: int
    records: int
    already_there: int


def merge(sources: Iterable[str | Path], target: str | Path) -> list[Merged]:
    """Copy every segment that brings a new key from the source stores into `target`.

    A segment is checked byte by byte before it is copied, and appears in one step; an interrupted
    merge is simply run again. Quarantine records come along.

    Raises
    ------
    DamagedSegment
        If a source segment is damaged: nothing of it is copied.
    UserError
        If a source is no store or a quarantine record of it is damaged, or the target cannot be
        written.
    """
    return [
        _merge_namespace(namespace, target)
        for source in sources
        for namespace in list_namespaces(source)
    ]


def _merge_namespace(source: Namespace, target: str | Path) -> Merged:
    into = create_namespace(target, source.identity, source.provenance)
    present, _ = keys_present(into)
    segments = records = known = 0
    for segment in source.segments():
        manifest = check_segment(source, segment, shards=True)
        keys = {row.tobytes() for row in read_keys(source, segment, manifest.records)}
        known += len(keys & present)
        if keys <= present:
            continue
        names = [*manifest.files, "manifest.json"]
        files = {
            name: source.storage.read(source.path("segments", segment, name)) for name in names
        }
        with refused_as(f"cannot write to the store {target}", "run merge again"):
            publish_files(into, segment, files)
        segments += 1
        records += len(keys - present)
        present |= keys
    with refused_as(f"cannot write to the store {target}", "run merge again"):
        for name in quarantine_files(source):
            into.storage.create(into.path("quarantine", name), read_quarantined(source, name))
    return Merged(source.name, segments, records, known)
