"""`RUN/alignment.json`: the alignment of every arm of a run, scored and tested."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, cast

from pipelines.documents import read_document, write_document
from pipelines.regions.alignment import (
    observe_all,
    other_patients_map,
    references_of,
    scores_of,
)
from pipelines.regions.held import Held
from pipelines.regions.scoring import Scores, Test, Value, tests_of, values_of
from pipelines.regions.sources import sources_of, trained_of
from shared.targets import TargetStore

SCHEMA_NUMBER = 1
ALIGNMENT = "alignment.json"
BEFORE = "before"


class Alignment(TypedDict):
    """What `alignment.json` holds; `items` keeps each image's scores in each row."""

    schema: int
    layer: int
    data: str
    teacher: str
    images: int
    arms: list[str]  # the rows that were trained
    rows: dict[str, dict[str, Value]]
    tests: list[Test]
    items: list[dict[str, object]]


def measure(
    run: Path,
    *,
    data: Path | None = None,
    image_root: Path | None = None,
    store: str | None = None,
    regions: Path | None = None,
    teacher: str | None = None,
    limit: int | None = None,
) -> Alignment:
    """Measure every arm of a run and write `alignment.json` into it.

    Parameters
    ----------
    run
        An adapter folder, or a folder with `lora/` and `medalign/`.
    data, image_root, store, teacher
        Held-out questions and the targets of their images; default: what the arms' recipes name.
    regions
        A file of regions (`pipelines.regions.reading`).
    limit
        Only so many images.

    Raises
    ------
    UserError
        No adapter, no data or store named, a missing target, or arms of different layers.
    """
    from pipelines.evaluation.loading import load_base_student, load_student

    trained = trained_of(run)
    layer, recipes = trained.layer, trained.recipes
    base = load_base_student(list(trained.arms.values())[-1], trained.recipe)
    grid = base.processor.grid
    found = sources_of(
        trained,
        grid,
        data=data,
        image_root=image_root,
        store=store,
        regions=regions,
        teacher=teacher,
        limit=limit,
    )
    held = found.held
    seen = observe_all(base, held, layer, BEFORE)
    rows: dict[str, Scores] = {BEFORE: scores_of(seen, held, trained.recipe, grid)}
    del base
    for name, folder in trained.arms.items():
        student = load_student(folder)
        seen = observe_all(student, held, layer, name)
        rows[name] = scores_of(seen, held, recipes[name], grid)
        swapped = other_patients_map(seen, held, grid)
        if swapped:
            rows[f"{name}, other patient"] = swapped
        del student
    rows |= references_of(held, grid)
    document = _document(rows, held, list(trained.arms), layer, found.data, found.store)
    write_document(run / ALIGNMENT, document)
    return document


def read_alignment(run: Path) -> Alignment | None:
    """Read a run's `alignment.json`, or None where it was not measured."""
    file = run / ALIGNMENT
    if not file.is_file():
        return None
    return cast("Alignment", read_document(file, SCHEMA_NUMBER, "run `medalign alignment` again"))


def _document(
    rows: Mapping[str, Scores],
    held: Sequence[Held],
    arms: Sequence[str],
    layer: int,
    data: Path,
    store: TargetStore,
) -> Alignment:
    patients = {one.record.id: one.patient for one in held}
    return {
        "schema": SCHEMA_NUMBER,
        "layer": layer,
        "data": str(data),
        "teacher": store.identity.teacher,
        "images": len(held),
        "arms": list(arms),
        "rows": values_of(rows, patients),
        "tests": tests_of(_pairs(arms, rows), rows, patients),
        "items": [
            {
                "id": name,
                "unit": patient,
                "scores": {row: scores[name] for row, scores in rows.items() if name in scores},
            }
            for name, patient in patients.items()
        ],
    }


def _pairs(arms: Sequence[str], rows: Mapping[str, Scores]) -> list[tuple[str, str]]:
    """After against before, each arm against the first, and each against what it has to beat."""
    pairs = [(arm, BEFORE) for arm in arms] + [(arm, arms[0]) for arm in arms[1:]]
    against = [
        (arm, other) for arm in arms for other in (f"{arm}, other patient", "prior", "teacher")
    ]
    return [*pairs, *((a, b) for a, b in against if b in rows)]
