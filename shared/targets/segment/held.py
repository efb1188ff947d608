"""The segments that a reader keeps open: bounded in bytes, the last used stay."""

from collections.abc import Iterable

from shared.targets.namespace import Namespace
from shared.targets.segment.copies import copies_for
from shared.targets.segment.reader import SegmentReader, open_segments

KEPT = 16 << 20  # bytes: keys and places of chunks of 600 segments of 256 records


class OpenSegments:
    """Readers by segment id. A segment never changes, so one is right for as long as it is kept."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._readers: dict[str, SegmentReader] = {}
        self.copies = copies_for(namespace.storage)

    def open(self, segments: Iterable[str]) -> dict[str, SegmentReader]:
        """Open segments that are needed, which checks their manifests; the last used stay open.

        Raises
        ------
        DamagedSegment
            If one of them is.
        """
        # Another thread may do the same: nothing is taken for there that is not in hand.
        held = {segment: self._readers.get(segment) for segment in segments}
        missing = [segment for segment, reader in held.items() if reader is None]
        opened = {segment: reader for segment, reader in held.items() if reader is not None}
        found = open_segments(self._namespace, missing, self.copies)
        opened |= zip(missing, found, strict=True)
        for segment, reader in opened.items():
            self._readers.pop(segment, None)  # the last used stand last
            self._readers[segment] = reader
        if missing:
            self._trim()
        return opened

    def _trim(self) -> None:
        left = KEPT
        for segment, reader in reversed(list(self._readers.items())):
            left -= reader.size
            if left < 0:
                self._readers.pop(segment, None)

    def __len__(self) -> int:
        return len(self._readers)
