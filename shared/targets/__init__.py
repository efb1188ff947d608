"""The target store: what the teacher says about each image, written once, checked on reading (docs/store-format.md)."""

from shared.targets.identity import Difference, Identity, Preprocessing, first_difference
from shared.targets.manifest import DamagedSegment
from shared.targets.segments import SegmentWriter, TargetWriter
from shared.targets.store import Target, TargetStore

__all__ = [
    "DamagedSegment",
    "Difference",
    "Identity",
    "Preprocessing",
    "SegmentWriter",
    "Target",
    "TargetStore",
    "TargetWriter",
    "first_difference",
]
