"""Joining stores: segments are copied as they are, nothing is encoded again."""

from collections.abc import Iterable, Set
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.errors import UserError
from shared.files import refused_as
from shared.targets.catalogue import publish_catalogue
from shared.targets.namespace import (
    Namespace,
    create_namespace,
    list_namespaces,
    quarantine_files,
    read_quarantined,
    release,
)
from shared.targets.numbers.query import basis_of
from shared.targets.segment.checks import keys_present, read_segment, segments_with_keys
from shared.targets.segment.manifest import DamagedSegment, VanishedSegment
from shared.targets.segment.writer import publish_files
from shared.targets.storage import Storage

BASES = 2**-10  # largest difference of two bases' numbers, as float16 rounds them: below 1


class Merged(NamedTuple):
    """What `merge` did in one namespace."""

    namespace: str
    segments: int
    records: int
    already_there: int


def merge(sources: Iterable[str | Path | Storage], target: str | Path | Storage) -> list[Merged]:
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
        merge_namespace(namespace, target)
        for source in sources
        for namespace in list_namespaces(source)
    ]


def merge_namespace(source: Namespace, target: str | Path | Storage) -> Merged:
    """Copy one namespace; as `merge`."""
    into = create_namespace(target, source.identity, source.provenance)
    _check_basis(source, into)
    present, _ = keys_present(into)
    before = frozenset(present)
    segments = records = 0
    known: set[bytes] = set()
    again = True
    while again:
        again = False
        for segment, found in segments_with_keys(source):
            if isinstance(found, DamagedSegment):
                raise found
            keys = {row.tobytes() for row in found[1]}
            known |= keys & before
            if keys <= present:
                continue
            try:
                files = read_segment(source, segment)
            except VanishedSegment:  # `cache gc` moves its records to another segment
                again = True
                continue
            with refused_as(
                f"cannot write to the store {into.storage.location}", "run merge again"
            ):
                publish_files(into, segment, files)
            segments += 1
            records += len(keys - present)
            present |= keys
    with refused_as(f"cannot write to the store {into.storage.location}", "run merge again"):
        copy_quarantine(source, into, present)
        with suppress(DamagedSegment):  # the target's own
            publish_catalogue(into)
    return Merged(source.name, segments, records, len(known))


def _check_basis(source: Namespace, into: Namespace) -> None:
    """Refuse to mix records that are read in two bases: a map of some of them would be wrong.

    Two processors may turn directions of like weight into each other (`basis_in`).
    """
    if source.identity.query is None:
        return
    first, second = basis_of(source.provenance), basis_of(into.provenance)
    if first.shape != second.shape or np.abs(first - second).max(initial=0) > BASES:
        raise UserError(
            f"{source.name} in {source.storage.location} is asked in another basis than in "
            f"{into.storage.location}: they were begun on different machines. Build the one into "
            "the store of the other, or start it from a copy of the other's folder"
        )


def copy_quarantine(source: Namespace, into: Namespace, present: Set[bytes]) -> None:
    """Copy the quarantine records of images that are not `present` in `into`."""
    for name in quarantine_files(source):
        record = read_quarantined(source, name)
        if bytes.fromhex(name[:64]) not in present:
            into.storage.create(into.path("quarantine", name), record)
    release(into, lambda keys: [key in present for key in keys])
