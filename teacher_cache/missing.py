"""Which images a store lacks."""

from collections.abc import Iterable

from shared.console import warn
from shared.targets import DamagedSegment, TargetStore
from shared.targets.namespace import Namespace
from shared.targets.segment.checks import keys_present


def missing_keys(namespace: Namespace, keys: Iterable[bytes]) -> list[bytes]:
    """Return those of `keys` of which the namespace has no sound record, in order.

    Damaged segments are warned of.
    """
    try:
        return TargetStore.open(namespace.storage, identity=namespace.identity).missing(keys)
    except DamagedSegment as error:
        present, damaged = keys_present(namespace)
        warn(f"{len(damaged)} segments are damaged and count as missing, the first: {error}")
        return [key for key in dict.fromkeys(keys) if key not in present]
