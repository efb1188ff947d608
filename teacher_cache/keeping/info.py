"""What is in a store: a description of each namespace, and its records one by one."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.targets.identity import IdentityDocument
from shared.targets.namespace import Namespace, list_namespaces, quarantined
from shared.targets.segment.checks import segments_with_keys
from shared.targets.segment.manifest import DamagedSegment, Manifest, VanishedSegment
from shared.targets.segment.reader import SegmentReader
from shared.targets.storage import Storage


class Row(NamedTuple):
    """One record of a namespace as `cache list` shows it."""

    key: str
    segment: str
    row: int
    superseded: bool  # another segment holds the same key and is the one that is read


class Ranks(TypedDict):
    """Ranks of the `factors` of a namespace."""

    smallest: int
    mean: float
    largest: int


class Errors(TypedDict):
    """Errors of a similarity that `factors` of a namespace leave."""

    mean: float
    largest: float


class Description(TypedDict):
    """A namespace as `cache info` shows it: JSON values, sizes in bytes, times ISO 8601 UTC."""

    namespace: str
    teacher: str
    fingerprint: str
    identity: IdentityDocument
    provenance: Mapping[str, object]
    records: int
    superseded: int
    segments: int
    bytes: int
    bytes_per_record: float | None
    oldest: str | None
    newest: str | None
    quarantined: int
    damaged: list[str]  # what could not be counted, and why
    rank: NotRequired[Ranks]  # of `factors`, as `error`, which is by grid
    error: NotRequired[dict[str, Errors]]


class _Counts:
    """What the sound segments of a namespace hold together."""

    def __init__(self, namespace: Namespace) -> None:
        self.keys: set[bytes] = set()
        self.stored = self.size = 0
        self.times: list[float] = []
        self.damaged: list[str] = []
        self.ranks: list[NDArray[np.generic]] = []
        self.errors: list[NDArray[np.generic]] = []
        for segment, found in segments_with_keys(namespace):
            if isinstance(found, DamagedSegment):
                self.damaged.append(str(found))
                continue
            try:
                self._add(namespace, segment, *found)
            except VanishedSegment:
                raise
            except DamagedSegment as error:
                self.damaged.append(str(error))

    def _add(
        self, namespace: Namespace, segment: str, manifest: Manifest, rows: NDArray[np.uint8]
    ) -> None:
        if namespace.identity.encoding == "factors":
            reader = SegmentReader(namespace, segment)
            self.ranks.append(reader.small("rank"))
            self.errors.append(reader.small("error"))
        written = namespace.path("segments", segment, "manifest.json")
        self.times.append(namespace.storage.modified(written))
        self.keys.update(row.tobytes() for row in rows)
        self.stored += manifest.records
        self.size += manifest.size


def _counts(namespace: Namespace) -> _Counts:
    """Count, and count anew where `cache gc` has moved records meanwhile."""
    while True:
        with suppress(VanishedSegment, FileNotFoundError):
            return _Counts(namespace)


def info(root: str | Path | Storage) -> list[Description]:
    """Describe every namespace: teacher, identity, records, bytes, age, errors of `factors`."""
    return [describe(namespace) for namespace in list_namespaces(root)]


def describe(namespace: Namespace) -> Description:
    """Describe one namespace; as `info`."""
    found = _counts(namespace)
    left_out = 0
    try:
        left_out = sum(1 for _ in quarantined(namespace))
    except UserError as error:
        found.damaged.append(str(error))
    description: Description = {
        "namespace": namespace.name,
        "teacher": namespace.identity.teacher,
        "fingerprint": namespace.identity.fingerprint(),
        "identity": namespace.identity.document(),
        "provenance": _told(namespace.provenance),
        "records": len(found.keys),
        "superseded": found.stored - len(found.keys),
        "segments": len(namespace.segments()),
        "bytes": found.size,
        "bytes_per_record": found.size / found.stored if found.stored else None,
        "oldest": _iso(min(found.times)) if found.times else None,
        "newest": _iso(max(found.times)) if found.times else None,
        "quarantined": left_out,
        "damaged": found.damaged,
    }
    if found.ranks:
        rank, deviation = np.concatenate(found.ranks), np.concatenate(found.errors)
        description["rank"] = {
            "smallest": int(rank.min()),
            "mean": float(rank.mean()),
            "largest": int(rank.max()),
        }
        description["error"] = {
            grid: {
                "mean": float(deviation[:, column].mean()),
                "largest": float(deviation[:, column].max()),
            }
            for column, grid in enumerate(("native", "24x24"))
        }
    return description


def asked_line(row: Description) -> str:
    """Say how a namespace is asked in words; nothing where it cannot be."""
    query, kept = row["identity"].get("query"), row["provenance"].get("query")
    if query is None or not isinstance(kept, Mapping):
        return ""
    heads = f" ({query['heads']} heads)" if query["heads"] else ""
    return (
        f"{query['method']}{heads}, rank {query['rank']}: the basis leaves {kept['residual']:.2%} "
        f"of its terms' energy out ({kept['largest_residual']:.2%} of the worst)"
    )


def _told(provenance: Mapping[str, object]) -> Mapping[str, object]:
    """Return a provenance without the numbers of a basis, which no person reads."""
    query = provenance.get("query")
    if not isinstance(query, Mapping):
        return provenance
    return {**provenance, "query": {name: query[name] for name in query if name != "basis"}}


def listing(namespace: Namespace) -> Iterator[Row]:
    """Yield every stored record, segment by segment."""
    seen: set[bytes] = set()
    found = {
        segment: one if isinstance(one, DamagedSegment) else one[1]
        for segment, one in segments_with_keys(namespace)
    }
    for segment, rows in sorted(found.items()):
        if isinstance(rows, DamagedSegment):
            raise rows
        for row, key in enumerate(rows):
            name = key.tobytes()
            yield Row(name.hex(), segment, row, name in seen)  # the first in order is read
            seen.add(name)


def _iso(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")
