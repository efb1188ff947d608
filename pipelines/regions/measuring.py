"""`RUN/alignment.json`: the alignment of every arm of a run, scored and tested."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict, cast

from pipelines.documents import read_document, write_document
from pipelines.regions.alignment import (
    observe_all,
    other_patients_map,
    references_of,
    scores_of,
)
from pipelines.regions.layers import ByLayer, by_layer
from pipelines.regions.scoring import Scores, Test, Value, tests_of, values_of
from pipelines.regions.separability import Vector
from pipelines.regions.sided import Sides, sided_of, sides_of, with_names_swapped
from pipelines.regions.sources import Sources, sources_of, trained_of
from shared.imaging.grid import Grid
from shared.recipe import Recipe

if TYPE_CHECKING:
    from pipelines.evaluation.loading import Loaded

SCHEMA_NUMBER = 1
ALIGNMENT = "alignment.json"
BEFORE = "before"


class Alignment(TypedDict):
    """What `alignment.json` holds; `items` keeps each image's scores in each row.

    `by_layer` is there where layers were asked for, `sides` where questions name a side. Each is a
    family of tests by itself.
    """

    schema: int
    layer: int
    data: str
    teacher: str
    images: int
    arms: list[str]  # the rows that were trained
    rows: dict[str, dict[str, Value]]
    tests: list[Test]
    items: list[dict[str, object]]
    by_layer: NotRequired[ByLayer]
    sides: NotRequired[Sides]


def measure(
    run: Path,
    *,
    data: Path | None = None,
    image_root: Path | None = None,
    store: str | None = None,
    regions: Path | None = None,
    teacher: str | None = None,
    limit: int | None = None,
    layers: Sequence[int] = (),
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
    layers
        Of the decoder, 0-based: where separability is measured besides layer l.

    Raises
    ------
    UserError
        No adapter, no data or store named, a missing target, arms of different layers, or a layer
        that the model does not have.
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
    measured = _Measured(found, layer, layers)
    measured.add(BEFORE, base, trained.recipe)
    del base
    for name, folder in trained.arms.items():
        student = load_student(folder, named=False)
        measured.add(name, student, recipes[name])
        del student
    document = measured.document(list(trained.arms), grid)
    write_document(run / ALIGNMENT, document)
    return document


class _Measured:
    """What the students of a run showed so far: each is in memory by itself."""

    def __init__(self, found: Sources, layer: int, layers: Sequence[int]) -> None:
        self.found, self.layer, self.layers = found, layer, layers
        self.sided = sided_of(found.data, found.held)
        self.rows: dict[str, Scores] = {}
        self.vectors: dict[str, dict[int, list[Vector]]] = {}
        self.sides: dict[str, tuple[Scores, Scores]] = {}

    def add(self, name: str, student: "Loaded", recipe: Recipe) -> None:
        """Observe a student on every image, and on those with a sided question twice more."""
        held, grid = self.found.held, student.processor.grid
        seen = observe_all(student, held, self.layer, name, self.layers)
        self.rows[name] = scores_of(seen, held, recipe, grid)
        self.vectors[name] = seen.vectors
        swapped = other_patients_map(seen, held, grid) if name != BEFORE else {}
        if swapped:
            self.rows[f"{name}, other patient"] = swapped
        if self.sided:
            asked, exchanged = (
                scores_of(observe_all(student, one, self.layer, title), one, recipe, grid)
                for one, title in (
                    (self.sided, f"{name}, sides"),
                    (with_names_swapped(self.sided), f"{name}, sides swapped"),
                )
            )
            self.sides[name] = asked, exchanged

    def document(self, arms: list[str], grid: Grid) -> Alignment:
        """Score and test what was observed."""
        held, store = self.found.held, self.found.store
        rows: dict[str, Scores] = self.rows | references_of(held, grid)
        patients = {one.record.id: one.patient for one in held}
        document: Alignment = {
            "schema": SCHEMA_NUMBER,
            "layer": self.layer,
            "data": str(self.found.data),
            "teacher": store.identity.teacher,
            "images": len(held),
            "arms": arms,
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
        layered = by_layer(self.vectors, _trained_pairs(arms), patients) if self.layers else None
        if layered is not None:
            document["by_layer"] = layered
        if self.sides:
            document["sides"] = sides_of(self.sides, self.sided)
        return document


def read_alignment(run: Path) -> Alignment | None:
    """Read a run's `alignment.json`, or None where it was not measured."""
    file = run / ALIGNMENT
    if not file.is_file():
        return None
    return cast("Alignment", read_document(file, SCHEMA_NUMBER, "run `medalign alignment` again"))


def _trained_pairs(arms: Sequence[str]) -> list[tuple[str, str]]:
    """After against before, and each arm against the first."""
    return [(arm, BEFORE) for arm in arms] + [(arm, arms[0]) for arm in arms[1:]]


def _pairs(arms: Sequence[str], rows: Mapping[str, Scores]) -> list[tuple[str, str]]:
    """After against before, each arm against the first, and each against what it has to beat."""
    pairs = _trained_pairs(arms)
    against = [
        (arm, other) for arm in arms for other in (f"{arm}, other patient", "prior", "teacher")
    ]
    return [*pairs, *((a, b) for a, b in against if b in rows)]
