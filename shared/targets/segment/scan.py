"""The checksum scan beneath `cache verify`: every byte of a store against what was written."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from shared.errors import UserError
from shared.targets.namespace import (
    Namespace,
    check_groups,
    namespace_names,
    quarantine_files,
    read_namespace,
    read_quarantined,
)
from shared.targets.segment.manifest import DamagedSegment, check_segment
from shared.targets.storage import Storage, join, open_storage


class Checked(NamedTuple):
    """One thing checked.

    Its path in the store, how many bytes, and what is wrong with it, None if nothing is.
    """

    path: str
    size: int
    damage: str | None


def scan(root: str | Path | Storage) -> Iterator[Checked]:
    """Check every file of every namespace, one yield a segment or metadata file.

    Detects any change of any byte, any file missing, emptied, truncated or added, metadata
    included. Two losses leave no trace by design: a whole segment folder (its images are simply not
    there; a build makes them again) and a whole quarantine record.

    Raises
    ------
    UserError
        If there is no store at all, or it cannot be reached.
    """
    storage = open_storage(root) if isinstance(root, str | Path) else root
    for name in namespace_names(storage):
        yield from _scan_namespace(storage, name)


def count_segments(root: str | Path) -> int:
    """Count the segments of all namespaces, for a progress bar over `scan`."""
    storage = open_storage(root)
    return sum(len(storage.names(join(name, "segments"))) for name in namespace_names(storage))


def _scan_namespace(storage: Storage, name: str) -> Iterator[Checked]:
    path = join(name, "zarr.json")
    try:
        namespace = read_namespace(storage, name)
    except UserError as error:
        # Without its identity nothing below can be understood; the rest is checked once the file is
        # restored.
        yield Checked(path, 0, str(error))
        return
    yield Checked(path, len(storage.read(path)), None)
    try:
        check_groups(namespace)
    except UserError as error:
        yield Checked(namespace.path("segments"), 0, str(error))
    yield from _scan_quarantine(namespace)
    for segment in namespace.segments():
        yield _scan_segment(namespace, segment)


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


def _scan_segment(namespace: Namespace, segment: str) -> Checked:
    path = namespace.path("segments", segment)
    try:
        manifest = check_segment(namespace, segment, shards=True)
    except DamagedSegment as error:
        return Checked(path, 0, str(error))
    except OSError as error:
        return Checked(path, 0, f"damaged segment {path}: {_reason(error)}")
    return Checked(path, manifest.size, None)


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
