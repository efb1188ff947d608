"""Which expert knows the regions: the teacher's half, before any training.

Every teacher of a store is scored on the images with regions (`experts`), and each against the
first. E_v is encoded again: a store keeps similarities. Without the teacher's weights its rows are
missing, and the reason is said.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from pipelines.regions.experts import (
    CHANCE,
    FEATURES,
    OWN,
    PAIRS,
    PRIOR,
    READ,
    SIMILARITY,
    Case,
    Scores,
    cases_of,
    feature_rows,
    store_rows,
)
from pipelines.regions.gate import Gate, gate_of
from pipelines.regions.query.file import read_query
from pipelines.regions.query.scoring import (
    ASKED,
    QUERY_PAIRS,
    Asked,
    asked_of,
    imported_of,
    query_rows,
)
from pipelines.regions.query.stored import Stored
from pipelines.regions.reading import read_regions, reference_to
from pipelines.regions.scorers import RANDOM, Deleted, MapOf, deletion_rows
from pipelines.regions.scoring import Test, Value, tests_of, values_of
from shared.console import warn
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.imaging.images import parse_reference
from shared.targets import TargetStore
from shared.targets.maps import normalised
from shared.targets.namespace import Namespace, list_namespaces

SCHEMA_NUMBER = 1


class Audited(TypedDict):
    """What is said of one teacher.

    `left_out`: why the rows of E_v are missing, or nothing. `deletion_against`: what the pictures
    of deletion and insertion are compared with. `gate`: where a query was asked.
    """

    teacher: str
    grid: str
    rows: dict[str, dict[str, Value]]
    tests: list[Test]
    left_out: str
    silhouette: float | None
    deletion_against: str | None
    gate: Gate | None


class Audit(TypedDict):
    """What `cache audit --json` prints. `between`: each teacher against the first one."""

    schema: int
    regions: str
    images: int
    patients: int
    without_target: int
    teachers: dict[str, Audited]
    between: list[Test]


def audit(
    store: str | Path,
    regions: Path,
    *,
    image_root: Path | None = None,
    teacher: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    query: Path | None = None,
    encoder: str | None = None,
    tokenizer: str | None = None,
    deletion: int | None = None,
    maps: str | None = None,
) -> Audit:
    """Audit every teacher of a store, or the one named.

    Parameters
    ----------
    store
        The store, whose images the regions name.
    regions
        A file or folder of regions (`pipelines.regions.reading`).
    image_root
        What the images in it are relative to; default: its own folder.
    weights
        Of a teacher that brings none.
    device
        Where E_v is encoded.
    query, encoder
        A fitted query and the folder of its sentence encoder: its maps are scored on the images of
        patients that it was not fitted on, beside all other rows of those images alone. Without it
        a store that was built with `--query` is asked itself.
    tokenizer
        Of that store's text tower, where it does not keep the embeddings of the labels.
    deletion
        Measure deletion and insertion of so many regions' maps, whose images are encoded again.
    maps
        A store of maps instead of a query: those whose text is a label are scored, and the other
        rows are of their images alone.

    Raises
    ------
    UserError
        No teacher, no image with regions that has a target, or a faulty file.
    """
    if query is not None and maps is not None:
        raise UserError("one source of maps is audited at a time: --query FILE or --maps STORE")
    found = _namespaces(store, teacher, weights)
    known = {image: one for image, one in read_regions(regions).items() if one.regions}
    root = image_root or (regions if regions.is_dir() else regions.parent)
    references = {
        image: reference_to(image, root)
        for image, one in known.items()
        if one.seen is None or parse_reference(image, root).path.is_file()
    }
    audited: dict[str, Audited] = {}
    every: dict[str, Scores] = {}
    patients: dict[str, str] = {}
    images: set[str] = set()
    missing = 0
    for namespace in found:
        opened = TargetStore.open(store, fingerprint=namespace.identity.fingerprint())
        cases = cases_of(known, references, opened)
        missing = max(missing, len(known) - len({case.image for case in cases}))
        if not cases:
            continue
        asked = None
        if query is not None:
            asked = asked_of(cases, opened, read_query(query), encoder)
        elif maps is not None:
            asked = imported_of(cases, opened, maps)
        elif opened.identity.query is not None:
            asked = _asked(cases, opened, weights, tokenizer)
        cases = cases if asked is None else asked.cases
        deleted = None
        if deletion is not None:
            deleted = deletion_rows(
                cases, opened, {} if asked is None else {ASKED: _maps_of(asked)}, deletion,
                weights=weights, tokenizer=tokenizer, device=device,
            )  # fmt: skip
        images |= {case.image for case in cases}
        patients |= {case.name: case.patient for case in cases}
        more = {} if asked is None else query_rows(asked)
        rows, audited[namespace.name] = _audited(cases, opened, weights, device, more, deleted)
        every |= {f"{namespace.name}: {row}": scores for row, scores in rows.items()}
    if not audited:
        raise UserError(
            f"no image with regions of {regions} has a target in {store}; `cache build` them first"
        )
    return {
        "schema": SCHEMA_NUMBER,
        "regions": str(regions),
        "images": len(images),
        "patients": len(set(patients.values())),
        "without_target": missing,
        "teachers": audited,
        "between": tests_of(_between(list(audited), every), every, patients),
    }


def _namespaces(store: str | Path, teacher: str | None, weights: str | None) -> list[Namespace]:
    """Return the teachers of a store, or the one named; refuse weights for more than one."""
    held = [one for one in list_namespaces(store) if one.identity.kind == "targets"]
    found = [one for one in held if teacher in (None, one.identity.teacher)]
    if not found:
        names = ", ".join(sorted({one.identity.teacher for one in held}))
        raise UserError(
            f"{store} has no targets of {teacher}; it has {names}"
            if held
            else f"{store} holds no targets; `cache build` first"
        )
    if weights is not None and len(found) > 1:
        raise UserError("--weights belong to one teacher; name it with --teacher")
    return found


def _asked(
    cases: Sequence[Case], opened: TargetStore, weights: str | None, tokenizer: str | None
) -> Asked | None:
    """Ask for what the store itself keeps to be asked, if its labels can be embedded."""
    try:
        return asked_of(cases, opened, Stored(opened, weights, tokenizer), None)
    except UserError as error:
        warn(f"{opened.namespace.name} is not asked in words: {error}")
        return None


def _maps_of(asked: Asked) -> MapOf:
    return lambda case: asked.map_for(case.key, normalised(case.label))


def _audited(
    cases: Sequence[Case],
    opened: TargetStore,
    weights: str | None,
    device: str,
    asked: Mapping[str, Scores],
    deleted: Deleted | None,
) -> tuple[dict[str, Scores], Audited]:
    """Score one teacher's rows; those of E_v are left out where it cannot be encoded again."""
    patients = {case.name: case.patient for case in cases}
    rows: dict[str, Scores] = {**store_rows(cases), **asked}
    for row, areas in (deleted.rows if deleted is not None else {}).items():
        own = rows.setdefault(row, {})
        for name, scores in areas.items():
            own[name] = {**own.get(name, {}), **scores}
    said, silhouette = "", None
    try:
        more, silhouette = feature_rows(cases, opened, weights, device)
        for name, scores in more.pop(CHANCE, {}).items():
            rows[CHANCE][name] |= scores
        rows |= more
    except UserError as error:
        if weights is not None:
            raise
        said = str(error)
    every = (*PAIRS, *QUERY_PAIRS, *((row, RANDOM) for row in (OWN, ASKED, PRIOR)))
    pairs = [(a, b) for a, b in every if a in rows and b in rows]
    values, tests = values_of(rows, patients), tests_of(pairs, rows, patients)
    return rows, {
        "teacher": opened.identity.teacher,
        "grid": str(Grid(*opened.grid)),
        "rows": values,
        "tests": tests,
        "left_out": said,
        "silhouette": silhouette,
        "deletion_against": None if deleted is None else deleted.against,
        "gate": gate_of(values, tests),
    }


def _between(names: Sequence[str], every: Mapping[str, Scores]) -> list[tuple[str, str]]:
    """Return the pairs of rows that compare each further teacher with the first."""
    first, *others = names
    pairs = [
        (f"{other}: {row}", f"{first}: {row}")
        for other in others
        for row in (OWN, READ, FEATURES, SIMILARITY)
    ]
    return [pair for pair in pairs if all(row in every for row in pair)]
