"""The target store.

What the teacher says about each image, written once, checked on reading (docs/store-format.md).
"""

from shared.targets.identity import Difference, Identity, Preprocessing, first_difference
from shared.targets.segment.manifest import DamagedSegment
from shared.targets.segment.writer import SegmentWriter
from shared.targets.store import Target, TargetStore
from shared.targets.writer import TargetWriter

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
