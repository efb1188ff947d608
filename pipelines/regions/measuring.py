"""`RUN/alignment.json`: the alignment of every arm of a run, scored and tested."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from pipelines.documents import write_document
from pipelines.evaluation.arms import find_arms
from pipelines.regions.alignment import (
    BOUNDED,
    Held,
    Scores,
    held_out,
    observe_all,
    other_patients_map,
    references_of,
    scores_of,
)
from pipelines.regions.reading import read_regions
from pipelines.statistics import holm, paired_test, score_interval
from pipelines.statistics.unbounded import mean_interval, paired_difference
from shared.errors import UserError
from shared.recipe import Recipe, load_recipe
from shared.targets import TargetStore

SCHEMA_NUMBER = 1
ALIGNMENT = "alignment.json"
BEFORE = "before"


class Value(TypedDict):
    """A mean over `n` images of `patients` patients, with its interval."""

    value: float
    interval: list[float]
    n: int
    patients: int


class Test(TypedDict):
    """Row `a` less row `b` on one score, over the images that both have. `p_holm`: of the table."""

    a: str
    b: str
    score: str
    difference: float
    interval: list[float | None]
    p: float
    p_holm: float
    n: int
    patients: int


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
    tests = [
        test
        for a, b in _pairs(arms, rows)
        for score in _scores(rows[a])
        if (test := _test(a, b, score, rows, patients)) is not None
    ]
    for test, p in zip(tests, holm([one["p"] for one in tests]), strict=True):
        test["p_holm"] = p
    return {
        "schema": SCHEMA_NUMBER,
        "layer": layer,
        "data": str(data),
        "teacher": store.identity.teacher,
        "images": len(held),
        "arms": list(arms),
        "rows": {
            name: {score: _value(score, scores, patients) for score in _scores(scores)}
            for name, scores in rows.items()
        },
        "tests": tests,
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


def _scores(scores: Scores) -> list[str]:
    return list(dict.fromkeys(name for one in scores.values() for name in one))


def _value(score: str, scores: Scores, patients: Mapping[str, str]) -> Value:
    names = [name for name, one in scores.items() if score in one]
    values = [scores[name][score] for name in names]
    clusters = [patients[name] for name in names]
    interval = (score_interval if score in BOUNDED else mean_interval)(values, clusters)
    return {
        "value": interval.value,
        "interval": [interval.low, interval.high],
        "n": interval.n,
        "patients": interval.clusters,
    }


def _test(
    a: str, b: str, score: str, rows: Mapping[str, Scores], patients: Mapping[str, str]
) -> Test | None:
    first, second = rows[a], rows[b]
    names = [
        name for name in first if name in second and score in first[name] and score in second[name]
    ]
    if not names:
        return None
    clusters = [patients[name] for name in names]
    own = [first[name][score] for name in names]
    other = [second[name][score] for name in names]
    tested = (paired_test if score in BOUNDED else paired_difference)(own, other, clusters)
    ends = [end if abs(end) != float("inf") else None for end in (tested.low, tested.high)]
    return {
        "a": a,
        "b": b,
        "score": score,
        "difference": tested.difference,
        "interval": ends,
        "p": tested.p,
        "p_holm": tested.p,
        "n": tested.n,
        "patients": tested.clusters,
    }
