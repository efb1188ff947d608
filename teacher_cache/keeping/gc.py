"""Sweeping a store: what dead writers left, damaged segments, records that are there twice.

One `gc` at a time removes anything from a namespace; builds and merges go on beside it. Nothing is
removed but what was found superfluous under that lock, and is found so once more at the last
moment.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.console import track
from shared.errors import UserError
from shared.files import refused_as
from shared.targets.catalogue import discard_catalogues, publish_catalogue
from shared.targets.identity import FORMAT
from shared.targets.index import Index, build_index
from shared.targets.namespace import Namespace, list_namespaces, release
from shared.targets.segment.checks import check_segment, segments_with_keys
from shared.targets.segment.copying import copy_rows
from shared.targets.segment.manifest import DamagedSegment, Manifest, VanishedSegment, read_manifest
from shared.targets.segment.reader import SegmentReader
from shared.targets.segment.writer import SegmentWriter
from shared.targets.storage import Storage, open_storage
from shared.targets.storage.base import Hold
from teacher_cache.keeping.compact import Compacted, compact
from teacher_cache.keeping.removing import is_sound, is_there, keep

DAY = 86400.0


class Swept(NamedTuple):
    """What `gc` removed.

    Abandoned temporary files, damaged segments, segments with superseded records, and bytes.
    `released` counts quarantine records of images that have a target by now. `busy` says that
    another `gc` is at work on the namespace, to which it was left. `compacted` small segments went,
    `written` took their place. `older_format`: it was to be compacted, and is of format 1.
    """

    namespace: str
    strays: list[str]
    damaged: list[str]
    superseded: list[str]
    records: int
    bytes: int
    released: int = 0
    busy: bool = False
    compacted: int = 0
    written: int = 0
    older_format: bool = False


def gc(
    root: str | Path | Storage,
    older_than: float = DAY,
    damaged: bool = False,
    dry_run: bool = False,
    compacting: bool = False,
) -> list[Swept]:
    """Sweep strays and superseded duplicates, one result a namespace.

    Only segments that share a record with another, or are compacted, are read whole; with
    `damaged`, all are.

    Parameters
    ----------
    older_than
        Age in seconds from which what other hosts left behind counts as abandoned. Less than 0
        takes all of it: no writer may be at work then.
    damaged
        Also drop segments that fail the full checksum scan, so that a build makes their records
        again.
    dry_run
        Only say what would go (strays are not listed then).
    compacting
        Also write small segments anew as full ones (`compact`), of namespaces of today's format.

    Raises
    ------
    UserError
        If there is no store, or it may not be changed; or the age is one at which an upload to an
        object store may still be under way.
    """
    storage = open_storage(root) if isinstance(root, str | Path) else root
    if 0 <= older_than < storage.youngest_stray:
        raise UserError(
            f"--older-than {older_than / 3600:g} could take parts of an upload that is under way: "
            f"for {storage.location} use {storage.youngest_stray / 3600:g} hours or more"
        )
    with refused_as(
        f"cannot change the store {root}", "make room or restore write access, and run gc again"
    ):
        return [
            _sweep_namespace(one, older_than, damaged, dry_run, compacting)
            for one in list_namespaces(storage)
        ]


def _sweep_namespace(
    namespace: Namespace, older_than: float, damaged: bool, dry_run: bool, compacting: bool
) -> Swept:
    if dry_run:
        return _sweep_held(namespace, None, [], damaged, compacting)
    with namespace.storage.exclusive(namespace.name) as hold:
        if hold is None:
            return Swept(namespace.name, [], [], [], 0, 0, busy=True)
        strays = namespace.storage.sweep(namespace.name) + namespace.storage.sweep(
            namespace.name, float(older_than)
        )
        discard_catalogues(namespace)  # it must not name what is removed
        swept = _sweep_held(namespace, hold, strays, damaged, compacting)
        with suppress(DamagedSegment):
            publish_catalogue(namespace)
        return swept


def _sweep_held(
    namespace: Namespace, hold: Hold | None, strays: list[str], damaged: bool, compacting: bool
) -> Swept:
    """Sweep segments while the namespace is held; without a hold, only say what would go."""
    sound, broken = _soundness(namespace, damaged, hold)
    freed = 0
    dropped: list[str] = []
    for segment in broken if damaged else ():
        size = sum(namespace.storage.sizes(namespace.path("segments", segment)).values())
        if hold is None or _drop_damaged(namespace, segment, hold):
            dropped.append(segment)
            freed += size
    index, partly = _duplicates(namespace, sound, checked=damaged)
    superseded, moved, records, saved = _drop_superseded(namespace, partly, hold)
    released = 0
    if hold is not None:
        released = release(namespace, lambda keys: [place >= 0 for place in index.find(keys)])
    older = compacting and namespace.identity.format < FORMAT
    made = Compacted(0, 0)
    if compacting and not older:
        # Not what a build has just published: it may hold a record that is here already.
        made = compact(namespace, sorted({*sound, *moved}.difference(superseded)), hold)
    return Swept(
        namespace.name,
        strays,
        dropped,
        superseded,
        records,
        freed + saved,
        released,
        compacted=made.old,
        written=made.new,
        older_format=older,
    )


def _soundness(namespace: Namespace, whole: bool, hold: Hold | None) -> tuple[list[str], list[str]]:
    """Sort segments into sound and damaged, by their small files, or by all of them if `whole`."""
    sound: list[str] = []
    broken: list[str] = []
    count = len(namespace.segments())
    for segment, found in track(segments_with_keys(namespace), count, "checking", "segments"):
        if isinstance(found, DamagedSegment) or (whole and not is_sound(namespace, segment)):
            broken.append(segment)
        else:
            sound.append(segment)
        if hold is not None:
            keep(namespace, hold)
    return sorted(sound), sorted(broken)


def _drop_damaged(namespace: Namespace, segment: str, hold: Hold) -> bool:
    """Remove a segment unless it is sound by now: a build may have made it again."""
    try:
        check_segment(namespace, segment, shards=True)
        return False
    except VanishedSegment:
        return False
    except DamagedSegment:
        keep(namespace, hold)
        namespace.storage.remove(namespace.path("segments", segment))
        return True


class _Partly(NamedTuple):
    """A segment of which not all rows are read.

    Its manifest, the rows that are, and the segments that hold the others.
    """

    segment: str
    manifest: Manifest
    kept: list[int]
    holders: set[str]


def _duplicates(
    namespace: Namespace, segments: Sequence[str], checked: bool
) -> tuple[Index, list[_Partly]]:
    """Index the segments, and find those that are partly read.

    A record may go only where the other copy is sound to the last byte, so both are read whole; a
    damaged one is left as it is, and its copies stay.
    """
    sound = list(segments)
    whole = set(sound) if checked else set[str]()
    while True:
        index = build_index(namespace, sound)
        partly = list(_partly_read(namespace, index))
        involved = {one.segment for one in partly}.union(*(one.holders for one in partly))
        unchecked = sorted(involved - whole)
        if not unchecked:
            return index, partly
        damaged: set[str] = set()
        for segment in track(unchecked, len(unchecked), "comparing", "segments"):
            if is_sound(namespace, segment):
                whole.add(segment)
            else:
                damaged.add(segment)
        if not damaged:
            return index, partly
        sound = [segment for segment in sound if segment not in damaged]


def _partly_read(namespace: Namespace, index: Index) -> Iterator[_Partly]:
    live = np.bincount(index.places[:, 0], minlength=len(index.segments))
    for number, segment in enumerate(index.segments):
        manifest = read_manifest(namespace, segment)
        if int(live[number]) == manifest.records:
            continue
        kept = sorted(index.places[index.places[:, 0] == number, 1].tolist())
        reader = SegmentReader(namespace, segment)
        gone = [reader.key(row) for row in sorted(set(range(manifest.records)).difference(kept))]
        places = index.places[index.find(gone), 0]
        yield _Partly(segment, manifest, kept, {index.segments[int(one)] for one in places})


def _drop_superseded(
    namespace: Namespace, partly: Sequence[_Partly], hold: Hold | None
) -> tuple[list[str], list[str], int, int]:
    """Remove segments with superseded records.

    What is still read from them moves to a new segment first. Returns what went, what came, and how
    many records and bytes were saved.
    """
    moved: dict[str, str] = {}
    for one in partly:
        if one.kept and hold is not None:
            moved[one.segment] = _rewrite(namespace, one.segment, one.kept)
    removed: list[str] = []
    records = saved = 0
    # Only now may anything go: what is left of one segment may equal another that was to be
    # removed.
    for segment, manifest, kept, holders in partly:
        if segment in moved.values():
            continue
        if hold is not None:
            places = {moved.get(holder, holder) for holder in holders}
            if kept:
                places.add(moved[segment])
            if not all(is_there(namespace, place) for place in sorted(places)):
                continue  # the copies are gone: this one stays
            keep(namespace, hold)
            namespace.storage.remove(namespace.path("segments", segment))
        gone = manifest.records - len(kept)
        removed.append(segment)
        records += gone
        saved += manifest.size * gone // manifest.records
    return removed, sorted(set(moved.values())), records, saved


def _rewrite(namespace: Namespace, segment: str, rows: Sequence[int]) -> str:
    """Publish a segment that holds only `rows` of `segment`, and return its id.

    The stored values do not change.
    """
    writer = SegmentWriter(namespace)
    copy_rows(namespace, segment, writer, rows)
    return str(writer.publish(held=True))
