"""Keeping stores: what is in them, joining them, sweeping them, taking targets out.

No teacher, no data set needed.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError
from shared.targets.index import Index, build_index
from shared.targets.namespace import (
    Namespace,
    create_namespace,
    list_namespaces,
    quarantine_files,
    quarantined,
    read_quarantined,
)
from shared.targets.segment.manifest import DamagedSegment, check_segment, keys_present, read_keys
from shared.targets.segment.reader import SegmentReader
from shared.targets.segment.writer import SegmentWriter, publish_files
from shared.targets.store import TargetStore

DAY = 86400.0


class Row(NamedTuple):
    """One record of a namespace as `cache list` shows it."""

    key: str
    segment: str
    row: int
    superseded: bool  # another segment holds the same key and is the one that is read


class Merged(NamedTuple):
    """What `merge` did in one namespace."""

    namespace: str
    segments: int
    records: int
    already_there: int


class Swept(NamedTuple):
    """What `gc` removed.

    Abandoned temporary files, damaged segments, segments with superseded records, and bytes.
    """

    strays: list[str]
    damaged: list[str]
    superseded: list[str]
    records: int
    bytes: int


def info(root: str | Path) -> list[dict[str, Any]]:
    """Describe every namespace: teacher, identity, records, bytes, age, errors of `factors`.

    Returns
    -------
    list of dict
        JSON values; sizes in bytes, times ISO 8601 UTC. `damaged` lists segments that could not be
        counted.
    """
    return [_describe(namespace) for namespace in list_namespaces(root)]


def _describe(namespace: Namespace) -> dict[str, Any]:
    keys: set[bytes] = set()
    stored = size = 0
    times: list[float] = []
    damaged: list[str] = []
    ranks: list[NDArray[Any]] = []
    errors: list[NDArray[Any]] = []
    for segment in namespace.segments():
        try:
            manifest = check_segment(namespace, segment)
            rows = read_keys(namespace, segment, manifest.records)
            if namespace.identity.encoding == "factors":
                reader = SegmentReader(namespace, segment)
                ranks.append(reader.small("rank"))
                errors.append(reader.small("error"))
            times.append(
                namespace.storage.modified(namespace.path("segments", segment, "manifest.json"))
            )
        except DamagedSegment as error:
            damaged.append(str(error))
            continue
        keys.update(row.tobytes() for row in rows)
        stored += manifest.records
        size += sum(length for length, _ in manifest.files.values())
    left_out = 0
    try:
        left_out = sum(1 for _ in quarantined(namespace))
    except UserError as error:
        damaged.append(str(error))
    description: dict[str, Any] = {
        "namespace": namespace.name,
        "teacher": namespace.identity.teacher,
        "fingerprint": namespace.identity.fingerprint(),
        "identity": namespace.identity.document(),
        "provenance": namespace.provenance,
        "records": len(keys),
        "superseded": stored - len(keys),
        "segments": len(namespace.segments()),
        "bytes": size,
        "bytes_per_record": size / stored if stored else None,
        "oldest": _iso(min(times)) if times else None,
        "newest": _iso(max(times)) if times else None,
        "quarantined": left_out,
        "damaged": damaged,
    }
    if ranks:
        rank, deviation = np.concatenate(ranks), np.concatenate(errors)
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


def listing(namespace: Namespace) -> Iterator[Row]:
    """Yield every stored record, segment by segment."""
    index = build_index(namespace, namespace.segments())
    live = _live(index)
    for number, segment in enumerate(index.segments):
        rows = read_keys(namespace, segment, check_segment(namespace, segment).records)
        for row, key in enumerate(rows):
            yield Row(key.tobytes().hex(), segment, row, (number, row) not in live)


def merge(sources: Iterable[str | Path], target: str | Path) -> list[Merged]:
    """Copy every segment that brings a new key from the source stores into `target`, as it is, nothing encoded anew.

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
        _merge_namespace(namespace, target)
        for source in sources
        for namespace in list_namespaces(source)
    ]


def _merge_namespace(source: Namespace, target: str | Path) -> Merged:
    into = create_namespace(target, source.identity, source.provenance)
    present, _ = keys_present(into)
    segments = records = known = 0
    for segment in source.segments():
        manifest = check_segment(source, segment, shards=True)
        keys = {row.tobytes() for row in read_keys(source, segment, manifest.records)}
        known += len(keys & present)
        if keys <= present:
            continue
        names = [*manifest.files, "manifest.json"]
        files = {
            name: source.storage.read(source.path("segments", segment, name)) for name in names
        }
        with _told(f"cannot write to the store {target}", "run merge again"):
            publish_files(into, segment, files)
        segments += 1
        records += len(keys - present)
        present |= keys
    with _told(f"cannot write to the store {target}", "run merge again"):
        for name in quarantine_files(source):
            into.storage.create(into.path("quarantine", name), read_quarantined(source, name))
    return Merged(source.name, segments, records, known)


def gc(
    root: str | Path, older_than: float = DAY, damaged: bool = False, dry_run: bool = False
) -> list[Swept]:
    """Sweep strays and superseded duplicates, one result a namespace.

    Parameters
    ----------
    older_than
        Age in seconds from which what other hosts left behind counts as abandoned.
    damaged
        Also drop segments that fail the full checksum scan, so that a build makes their records
        again.
    dry_run
        Only say what would go (strays are not listed then).

    Raises
    ------
    UserError
        If there is no store, or it may not be changed.
    """
    with _told(f"cannot change the store {root}", "restore write access and run gc again"):
        return [
            _sweep_namespace(one, older_than, damaged, dry_run) for one in list_namespaces(root)
        ]


def _sweep_namespace(
    namespace: Namespace, older_than: float, damaged: bool, dry_run: bool
) -> Swept:
    strays: list[str] = []
    if not dry_run:
        strays = namespace.storage.sweep(namespace.name) + namespace.storage.sweep(
            namespace.name, float(older_than)
        )
    sound, broken = _soundness(namespace)
    freed = 0
    if damaged:
        for segment in broken:
            freed += sum(namespace.storage.sizes(namespace.path("segments", segment)).values())
            if not dry_run:
                namespace.storage.remove(namespace.path("segments", segment))
    superseded, records, saved = _drop_superseded(namespace, sound, dry_run)
    return Swept(strays, broken if damaged else [], superseded, records, freed + saved)


def _soundness(namespace: Namespace) -> tuple[list[str], list[str]]:
    """Sort segments into sound and damaged by the full scan.

    A duplicate may go only where the other copy is sound.
    """
    sound: list[str] = []
    broken: list[str] = []
    for segment in namespace.segments():
        try:
            check_segment(namespace, segment, shards=True)
        except DamagedSegment:
            broken.append(segment)
        else:
            sound.append(segment)
    return sound, broken


def _drop_superseded(
    namespace: Namespace, segments: Sequence[str], dry_run: bool
) -> tuple[list[str], int, int]:
    """Remove segments with superseded records.

    What is still read from them moves to a new segment first.
    """
    index = build_index(namespace, segments)
    live = _live(index)
    removed: list[str] = []
    rewritten: set[str | None] = set()
    records = saved = 0
    for number, segment in enumerate(index.segments):
        manifest = check_segment(namespace, segment)
        kept = [row for row in range(manifest.records) if (number, row) in live]
        if len(kept) == manifest.records:
            continue
        removed.append(segment)
        records += manifest.records - len(kept)
        saved += (
            sum(size for size, _ in manifest.files.values())
            * (manifest.records - len(kept))
            // manifest.records
        )
        if kept and not dry_run:
            rewritten.add(_rewrite(namespace, segment, kept))
    # Only now may anything go: what is left of one segment may equal another that was to be
    # removed.
    removed = [segment for segment in removed if segment not in rewritten]
    for segment in () if dry_run else removed:
        namespace.storage.remove(namespace.path("segments", segment))
    return removed, records, saved


def _rewrite(namespace: Namespace, segment: str, rows: Sequence[int]) -> str | None:
    """Publish a segment that holds only `rows` of `segment`, and return its id.

    The stored values do not change.
    """
    reader = SegmentReader(namespace, segment)
    writer = SegmentWriter(namespace)
    for row in rows:
        writer.add(reader.key(row), reader.record(row))
    return writer.publish()


def _live(index: Index) -> set[tuple[int, int]]:
    return {(int(number), int(row)) for number, row in np.asarray(index.places)}


def export(
    store: TargetStore,
    folder: str | Path,
    form: Literal["npz", "safetensors"],
    keys: Iterable[bytes] | None = None,
) -> Iterator[Path]:
    """Write one file an image, named by its content key, with `similarity`, `attention`, `coverage`; yield each.

    `identity.json` beside them says what they are. Files that are there already are not written
    again.

    Raises
    ------
    UserError
        If the folder holds the export of another identity or grid, or cannot be written.
    """
    out = Path(folder)
    with _told(f"cannot write to {out}", "choose another folder or make room"):
        yield from _export(store, out, form, keys)


def _export(
    store: TargetStore, out: Path, form: Literal["npz", "safetensors"], keys: Iterable[bytes] | None
) -> Iterator[Path]:
    out.mkdir(parents=True, exist_ok=True)
    identity = {
        "fingerprint": store.identity.fingerprint(),
        "grid": list(store.grid),
        "identity": store.identity.document(),
        "provenance": store.namespace.provenance,
    }
    description = out / "identity.json"
    if description.exists():
        found = json.loads(description.read_text())
        if (found["fingerprint"], found["grid"]) != (identity["fingerprint"], identity["grid"]):
            raise UserError(
                f"{out} holds targets of {found['fingerprint'][:12]}: choose an empty folder"
            )
    description.write_text(json.dumps(identity, indent=2) + "\n")
    for key in keys if keys is not None else store.keys():
        path = out / f"{key.hex()}.{form}"
        if not path.exists():
            target = store[key]._asdict()
            draft = path.with_name(f".tmp-{path.name}")
            with draft.open("wb") as file:
                if form == "npz":
                    np.savez_compressed(file, **target)
                else:
                    from safetensors.numpy import save

                    file.write(save(target, {"fingerprint": store.identity.fingerprint()}))
            draft.replace(path)
        yield path


@contextmanager
def _told(what: str, way_out: str) -> Iterator[None]:
    """Turn what the system refuses into one line for the user."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: {error.strerror or error}; {way_out}") from error


def _iso(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")
