"""Sweeping a store: what dead writers left, damaged segments, records that are there twice."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from shared.files import refused_as
from shared.targets.index import build_index
from shared.targets.namespace import Namespace, list_namespaces
from shared.targets.segment.manifest import DamagedSegment, Manifest, check_segment
from shared.targets.segment.reader import SegmentReader
from shared.targets.segment.writer import SegmentWriter

DAY = 86400.0


class Swept(NamedTuple):
    """What `gc` removed.

    Abandoned temporary files, damaged segments, segments with superseded records, and bytes.
    """

    strays: list[str]
    damaged: list[str]
    superseded: list[str]
    records: int
    bytes: int


def gc(
    root: str | Path, older_than: float = DAY, damaged: bool = False, dry_run: bool = False
) -> list[Swept]:
    """Sweep strays and superseded duplicates, one result a namespace.

    Parameters
    ----------
    older_than
        Age in seconds from which what other hosts left behind counts as abandoned.
    damaged
        Also drop segments that fail the full checksum scan, so that a build makes their records
        again.
    dry_run
        Only say what would go (strays are not listed then).

    Raises
    ------
    UserError
        If there is no store, or it may not be changed.
    """
    with refused_as(f"cannot change the store {root}", "restore write access and run gc again"):
        return [
            _sweep_namespace(one, older_than, damaged, dry_run) for one in list_namespaces(root)
        ]


def _sweep_namespace(
    namespace: Namespace, older_than: float, damaged: bool, dry_run: bool
) -> Swept:
    strays: list[str] = []
    if not dry_run:
        strays = namespace.storage.sweep(namespace.name) + namespace.storage.sweep(
            namespace.name, float(older_than)
        )
    sound, broken = _soundness(namespace)
    freed = 0
    if damaged:
        for segment in broken:
            freed += sum(namespace.storage.sizes(namespace.path("segments", segment)).values())
            if not dry_run:
                namespace.storage.remove(namespace.path("segments", segment))
    superseded, records, saved = _drop_superseded(namespace, sound, dry_run)
    return Swept(strays, broken if damaged else [], superseded, records, freed + saved)


def _soundness(namespace: Namespace) -> tuple[list[str], list[str]]:
    """Sort segments into sound and damaged by the full scan.

    A duplicate may go only where the other copy is sound.
    """
    sound: list[str] = []
    broken: list[str] = []
    for segment in namespace.segments():
        try:
            check_segment(namespace, segment, shards=True)
        except DamagedSegment:
            broken.append(segment)
        else:
            sound.append(segment)
    return sound, broken


def _drop_superseded(
    namespace: Namespace, segments: Sequence[str], dry_run: bool
) -> tuple[list[str], int, int]:
    """Remove segments with superseded records.

    What is still read from them moves to a new segment first.
    """
    removed: list[str] = []
    rewritten: set[str | None] = set()
    records = saved = 0
    for segment, manifest, kept in _partly_read(namespace, segments):
        gone = manifest.records - len(kept)
        removed.append(segment)
        records += gone
        saved += manifest.size * gone // manifest.records
        if kept and not dry_run:
            rewritten.add(_rewrite(namespace, segment, kept))
    # Only now may anything go: what is left of one segment may equal another that was to be
    # removed.
    removed = [segment for segment in removed if segment not in rewritten]
    for segment in () if dry_run else removed:
        namespace.storage.remove(namespace.path("segments", segment))
    return removed, records, saved


def _partly_read(
    namespace: Namespace, segments: Sequence[str]
) -> Iterator[tuple[str, Manifest, list[int]]]:
    """Yield each segment of which not all rows are read, with its manifest and those that are."""
    index = build_index(namespace, segments)
    live = index.live()
    for number, segment in enumerate(index.segments):
        manifest = check_segment(namespace, segment)
        kept = [row for row in range(manifest.records) if (number, row) in live]
        if len(kept) < manifest.records:
            yield segment, manifest, kept


def _rewrite(namespace: Namespace, segment: str, rows: Sequence[int]) -> str | None:
    """Publish a segment that holds only `rows` of `segment`, and return its id.

    The stored values do not change.
    """
    reader = SegmentReader(namespace, segment)
    writer = SegmentWriter(namespace)
    for row in rows:
        writer.add(reader.key(row), reader.arrays(row))
    return writer.publish()
