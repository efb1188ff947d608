"""Compaction: small segments become full ones, under the lock of `gc`.

Of every group the new segment is published whole and read back, and only then the old ones go, one
after another: a kill leaves records twice, which the next `gc` finds, and never a record less. The
bytes of each image are copied as they are. Readers that hold an old segment look its records up
anew when it is gone.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from shared.console import track
from shared.targets.namespace import Namespace
from shared.targets.segment.copying import copy_rows
from shared.targets.segment.layout import SEGMENT_BYTES, SEGMENT_RECORDS
from shared.targets.segment.manifest import DamagedSegment, read_manifests
from shared.targets.segment.writer import SegmentWriter
from shared.targets.storage.base import Hold
from teacher_cache.keeping.removing import is_sound, is_there, keep

_AT_ONCE = 256  # manifests in memory


class Compacted(NamedTuple):
    """How many small segments went, and how many took their place."""

    old: int
    new: int


class _Part(NamedTuple):
    """A small segment: its id, images, bytes."""

    segment: str
    records: int
    size: int


def compact(namespace: Namespace, segments: Sequence[str], hold: Hold | None) -> Compacted:
    """Write small ones of `segments` (sound, no record twice) anew, as few as can be.

    Small is what fills less than half a segment of today's builds. Without a hold, only say what
    would be done.

    Raises
    ------
    OSError
        If the disk is full or the store read-only: what is not done is as it was.
    UserError
        If the lock was lost.
    """
    old = new = 0
    groups = list(_groups(_small(namespace, segments)))
    for group in track(groups, len(groups), "compacting", "segments"):
        gone = len(group) if hold is None else _replace(namespace, group, hold)
        old += gone
        new += bool(gone)
    return Compacted(old, new)


def _small(namespace: Namespace, segments: Sequence[str]) -> Iterator[_Part]:
    names = sorted(segments)
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        for segment, found in zip(some, read_manifests(namespace, some), strict=True):
            if isinstance(found, DamagedSegment):
                continue  # it is gone, or damaged by now: `verify` names it
            if 2 * found.records < SEGMENT_RECORDS and 2 * found.size < SEGMENT_BYTES:
                yield _Part(segment, found.records, found.size)


def _groups(parts: Iterator[_Part]) -> Iterator[list[str]]:
    """Group small segments in the order of time; each group fits one segment.

    Since each fills less than a half, all groups but the last make segments that are small no
    longer: what has been compacted once is left alone from then on.
    """
    group: list[str] = []
    records = size = 0
    for part in parts:
        if records + part.records > SEGMENT_RECORDS or size + part.size > SEGMENT_BYTES:
            yield group
            group, records, size = [], 0, 0
        group.append(part.segment)
        records, size = records + part.records, size + part.size
    if len(group) > 1:
        yield group


def _replace(namespace: Namespace, group: Sequence[str], hold: Hold) -> int:
    """Put one segment in the place of several; return how many went."""
    writer = SegmentWriter(namespace)
    copied: list[str] = []
    for segment in group:
        keep(namespace, hold)
        with suppress(DamagedSegment):  # it stays as it is: `gc --damaged` drops it
            copy_rows(namespace, segment, writer)
            copied.append(segment)
    if len(copied) < 2:
        return 0
    keep(namespace, hold)
    new = str(writer.publish(held=True))
    if not is_sound(namespace, new):
        return 0
    for segment in copied:
        keep(namespace, hold)
        if is_there(namespace, new) and is_there(namespace, segment):
            namespace.storage.remove(namespace.path("segments", segment))
    return len(copied)
