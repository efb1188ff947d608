"""`RUN/alignment.json`: the alignment of every arm of a run, scored and tested."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from pipelines.documents import write_document
from pipelines.evaluation.arms import find_arms
from pipelines.regions.alignment import (
    Held,
    held_out,
    observe_all,
    other_patients_map,
    references_of,
    scores_of,
)
from pipelines.regions.reading import read_regions
from pipelines.regions.scoring import Scores, Test, Value, tests_of, values_of
from shared.errors import UserError
from shared.recipe import Recipe, load_recipe
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

    arms = {name: folder for name, folder in find_arms(run).items() if name != "base"}
    if not arms:
        raise UserError(f"{run} holds a plain model; give the output folder of `student train`")
    recipes = {name: load_recipe(folder / "recipe.yaml") for name, folder in arms.items()}
    layer = _one_layer(recipes)
    recipe = list(recipes.values())[-1]
    if data is None and recipe.evaluation.data is None:
        raise UserError("give --data FILE: the run's recipe has no evaluation.data")
    file = data or Path(str(recipe.evaluation.data))
    root = image_root or recipe.evaluation.image_root
    place = store or next((one.targets.store for one in recipes.values() if one.targets.store), "")
    if not place:
        raise UserError("give --store STORE: no arm's recipe has targets.store")
    base = load_base_student(list(arms.values())[-1], recipe)
    grid = base.processor.grid
    opened = TargetStore.open(place, teacher, grid=grid)
    known = read_regions(regions) if regions else {}
    held = held_out(file, Path(root) if root else None, opened, known, limit)
    seen = observe_all(base, held, layer, BEFORE)
    rows: dict[str, Scores] = {BEFORE: scores_of(seen, held, recipe, grid)}
    del base
    for name, folder in arms.items():
        student = load_student(folder)
        seen = observe_all(student, held, layer, name)
        rows[name] = scores_of(seen, held, recipes[name], grid)
        swapped = other_patients_map(seen, held, grid)
        if swapped:
            rows[f"{name}, other patient"] = swapped
        del student
    rows |= references_of(held, grid)
    found = _document(rows, held, list(arms), layer, file, opened)
    write_document(run / ALIGNMENT, found)
    return found


def _one_layer(recipes: Mapping[str, Recipe]) -> int:
    layers = {recipe.losses.layers for recipe in recipes.values()}
    if len(layers) > 1:
        raise UserError("the arms of this run have different layers; measure each by itself")
    return min(next(iter(layers)))


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
