"""Filling one namespace, segment after segment."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from shared.errors import UserError
from shared.files import refused_as
from shared.targets.identity import Identity
from shared.targets.namespace import create_namespace
from shared.targets.numbers.arrays import Arrays
from shared.targets.segment.layout import SEGMENT_BYTES, SEGMENT_RECORDS
from shared.targets.segment.writer import SegmentWriter
from shared.targets.storage import Storage


class TargetWriter:
    """Fills one namespace, segment after segment: what a build holds open.

    Use as a context manager: leaving it normally publishes the last, partial segment; leaving it by
    an exception publishes it too, for finished work is worth keeping, unless publishing was what
    failed.
    """

    def __init__(
        self,
        root: str | Path | Storage,
        identity: Identity,
        provenance: Mapping[str, object] | None = None,
        segment_records: int = SEGMENT_RECORDS,
    ) -> None:
        if segment_records < 1:
            raise UserError(f"--segment-records must be at least 1, got {segment_records}")
        self.namespace = create_namespace(root, identity, provenance)
        self._limit = segment_records
        self._segment = SegmentWriter(self.namespace)
        self._refused = False  # the last publishing failed
        self.namespace.storage.sweep(self.namespace.name)

    def add(self, key: bytes, arrays: Arrays) -> None:
        """Add one image's arrays; publishes the segment when it is full.

        Raises as `SegmentWriter.add` and `publish` do.
        """
        self._segment.add(key, arrays)
        if len(self._segment) >= self._limit or self._segment.size >= SEGMENT_BYTES:
            self.flush()

    def flush(self) -> None:
        """Publish what has been added so far.

        Raises
        ------
        UserError
            If the store cannot be written (disk full, read-only): finished segments are safe.
        """
        self._refused = True
        with refused_as(
            f"cannot write to the store {self.namespace.storage.location}",
            "finished segments are safe: make room or restore write access, then run the same "
            "build again",
        ):
            self._segment.publish()
        self._refused = False

    def __enter__(self) -> "TargetWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._refused:
            return  # publishing was what failed
        try:
            self.flush()
        except UserError as second:
            if error is None:
                raise
            error.add_note(f"and what was finished could not be kept: {second}")
