"""Removing segments of a namespace that is held: what is checked at the last moment."""

from shared.errors import UserError
from shared.targets.namespace import Namespace
from shared.targets.segment.checks import check_segment
from shared.targets.segment.manifest import DamagedSegment, read_manifest
from shared.targets.storage.base import Hold


def keep(namespace: Namespace, hold: Hold) -> None:
    """Renew the lock.

    Raises
    ------
    UserError
        If it was lost: another `gc` took this one for dead.
    """
    if not hold():
        raise UserError(
            f"another `cache gc` has taken over {namespace.name} of {namespace.storage.location}: "
            "nothing more was removed; run gc again when it has ended"
        )


def is_sound(namespace: Namespace, segment: str) -> bool:
    """Whether every byte of a segment is the one that was written."""
    try:
        check_segment(namespace, segment, shards=True)
    except DamagedSegment:
        return False
    return True


def is_there(namespace: Namespace, segment: str) -> bool:
    """Whether a segment that was found sound is still visible."""
    try:
        read_manifest(namespace, segment)
    except DamagedSegment:
        return False
    return namespace.storage.exists(namespace.path("segments", segment, "zarr.json"))
