"""The checksum scan beneath `cache verify`: every byte of a store against what was written."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from shared.errors import UserError
from shared.targets.namespace import (
    CATALOGUE,
    Namespace,
    catalogue_files,
    check_groups,
    foreign_entries,
    is_catalogue,
    namespace_names,
    quarantine_files,
    read_namespace,
    read_quarantined,
    segment_names,
)
from shared.targets.segment.checks import check_segment, each_segment, foreign_files
from shared.targets.segment.manifest import DamagedSegment, VanishedSegment
from shared.targets.storage import Storage, join, open_storage


class Checked(NamedTuple):
    """One thing checked.

    Its path in the store, how many bytes, what is wrong with it (None if nothing is), and what lies
    there that is none of the store's own.
    """

    path: str
    size: int
    damage: str | None
    foreign: tuple[str, ...] = ()  # files of others that lie there and harm nothing


def scan(root: str | Path | Storage) -> Iterator[Checked]:
    """Check every file of every namespace, one yield a segment or metadata file.

    Detects any change of any byte, any file missing, emptied or truncated, metadata included.
    Foreign files (`.DS_Store`, `@eaDir`) are told apart and are no damage. Two losses leave no
    trace by design: a whole segment folder (its images are simply not there; a build makes them
    again) and a whole quarantine record.

    Raises
    ------
    UserError
        If there is no store at all, or it cannot be reached.
    """
    storage = open_storage(root) if isinstance(root, str | Path) else root
    for name in namespace_names(storage):
        yield from _scan_namespace(storage, name)


def count_parts(root: str | Path) -> int:
    """Count what `scan` yields of a whole store, for a progress bar over it."""
    storage = open_storage(root)
    names = namespace_names(storage)
    segments = sum(len(segment_names(storage, name)) for name in names)
    return len(names) + segments + sum(_others(storage, name) for name in names)


def _others(storage: Storage, name: str) -> int:
    """Count quarantine records and catalogues."""
    try:
        namespace = read_namespace(storage, name)
        return len(quarantine_files(namespace)) + len(catalogue_files(namespace))
    except (UserError, FileNotFoundError):
        return 0


def _scan_namespace(storage: Storage, name: str) -> Iterator[Checked]:
    path = join(name, "zarr.json")
    try:
        namespace = read_namespace(storage, name)
    except UserError as error:
        # Without its identity nothing below can be understood; the rest is checked once the file is
        # restored.
        yield Checked(path, 0, str(error))
        return
    yield Checked(path, len(storage.read(path)), None, _foreign(namespace))
    try:
        check_groups(namespace)
    except UserError as error:
        yield Checked(namespace.path("segments"), 0, str(error))
    yield from _scan_quarantine(namespace)
    yield from _scan_catalogues(namespace)
    for _, checked in each_segment(namespace, lambda one: _scan_segment(namespace, one)):
        yield checked


def _foreign(namespace: Namespace) -> tuple[str, ...]:
    try:
        return tuple(foreign_entries(namespace))
    except FileNotFoundError:
        return ()  # reported as a missing group


def _scan_quarantine(namespace: Namespace) -> Iterator[Checked]:
    try:
        names = quarantine_files(namespace)
    except FileNotFoundError:
        return  # reported as a missing group
    for name in names:
        path = namespace.path("quarantine", name)
        try:
            yield Checked(path, len(read_quarantined(namespace, name)), None)
        except UserError as error:
            yield Checked(path, 0, str(error))
        except OSError as error:
            yield Checked(path, 0, f"damaged quarantine record {path}: {_reason(error)}")


def _scan_catalogues(namespace: Namespace) -> Iterator[Checked]:
    for name in catalogue_files(namespace):
        path = namespace.path(CATALOGUE, name)
        try:
            data = namespace.storage.read(path)
        except FileNotFoundError:
            continue  # a newer one is there
        sound = is_catalogue(data, name)
        damage = None if sound else f"damaged catalogue {path}: delete it, nothing is lost with it"
        yield Checked(path, len(data), damage)


def _scan_segment(namespace: Namespace, segment: str) -> Checked:
    path = namespace.path("segments", segment)
    try:
        manifest = check_segment(namespace, segment, shards=True)
        others = foreign_files(namespace, segment)
    except VanishedSegment:
        raise
    except DamagedSegment as error:
        return Checked(path, 0, str(error))
    except OSError as error:
        return Checked(path, 0, f"damaged segment {path}: {_reason(error)}")
    return Checked(path, manifest.size, None, tuple(join(path, name) for name in others))


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
