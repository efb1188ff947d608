"""What the page asks of a run, answered: lists, items, maps, similarities, pictures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipelines.evaluation.result import AnswerLine, Result, row_name
from pipelines.explore.documents import (
    ItemDocument,
    ItemsDocument,
    MapsDocument,
    QuestionDocument,
    RunDocument,
    SimilarityDocument,
    StudentMap,
    StudentMaps,
)
from pipelines.explore.fields import Fields, FieldsDocument
from pipelines.explore.pictures import image_box, inside, label_colours, opened, outlines, picture
from pipelines.explore.questions import Questions, checked
from pipelines.explore.search import Filter, search
from pipelines.explore.students import Observation, Students
from pipelines.explore.table import KINDS, Table
from pipelines.explore.targets import (
    Targets,
    similarity_row,
    teacher_map,
    visible_of,
)
from pipelines.metrics.items import kind_of_scores
from pipelines.regions.reading import Region, Regions, regions_of
from pipelines.report.answers import main_score, turned_pair
from pipelines.report.store_pictures import divergence, renormalized
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.imaging.images import ImageReference, parse_reference
from shared.targets import Target
from shared.vocabulary import Geometry

PAGE_ITEMS = 50
EAGER_ITEMS = 20_000  # up to so many the fields are read without being asked for


class Explorer:
    """A run as it is looked at; threads may share it. `opening.open_explorer` makes one."""

    def __init__(
        self,
        title: str,
        result: Result,
        table: Table,
        root: Path,
        students: Students,
        targets: Targets | None = None,
        regions: Mapping[str, Regions] | None = None,
        geometry: Geometry = "pad",
        notes: list[str] | None = None,
        questions: Questions | None = None,
    ) -> None:
        self._title = title
        self._result = result
        self._table = table
        self._root = root
        self._students = students
        self._targets = targets
        self._regions = regions
        self._geometry = geometry if targets is None else targets.geometry
        self._notes = notes or []
        self._fields = Fields(result)
        self._questions = questions or Questions(targets, None, None, students, answers=False)

    def run(self) -> RunDocument:
        """Return what the page opens with."""
        result, rows = self._result, self._result["rows"]
        names = {name for row in rows for name in row["scores"]}
        kinds = {kind_of_scores(dict.fromkeys([name], 0.0)) for name in names}
        return {
            "title": self._title,
            "rows": [{"name": row_name(row), "arm": row["adapter"]} for row in rows],
            "pair": list(turned_pair(rows) or (0, len(rows) - 1)),
            "items": self._table.total,
            "cluster": result["data"]["cluster"],
            "file": result["data"]["file"],
            "kinds": [kind for kind in KINDS if kind in kinds],
            "fields": [one["field"] for one in result["by"]],
            "teacher": None if self._targets is None else self._targets.teacher,
            "store": None if self._targets is None else self._targets.name,
            "students": self._students.names,
            "weights": self._students.weights(),
            "regions": self._regions is not None,
            "no_map": self._questions.no_map,
            "no_answer": self._questions.no_answer,
            "notes": self._notes,
        }

    def fields(self, asked: bool) -> FieldsDocument:
        """Return the fields of the records; begin to read them if asked, or if they are few."""
        if asked or self._table.total <= EAGER_ITEMS:
            self._fields.start()
        return self._fields.document()

    def items(self, wanted: Filter, start: int, count: int = PAGE_ITEMS) -> ItemsDocument:
        """Return a page of the list; raises as `search`."""
        found = search(self._table, wanted, self._fields, start, count)
        return {
            "items": [
                {
                    "place": place,
                    "id": answers[0]["id"],
                    "question": answers[0]["question"],
                    "reference": answers[0]["reference"],
                    "kind": kind_of_scores(answers[0]["scores"]),
                    "marks": [main_score(one["scores"]) for one in answers],
                }
                for place, answers in zip(
                    found.places, self._table.items(found.places), strict=True
                )
            ],
            "following": found.following,
            "searched": found.searched,
            "total": self._table.total,
        }

    def item(self, place: int) -> ItemDocument:
        """Return all about an item; a UserError where there is none."""
        answers = self._answers(place)
        first = answers[0]
        return {
            "place": place,
            "id": first["id"],
            "question": first["question"],
            "reference": first["reference"],
            "kind": kind_of_scores(first["scores"]),
            "cluster": first["cluster"],
            "images": first["images"],
            "fields": self._fields.of(place),
            "answers": [
                {
                    "text": one["prediction"],
                    "mark": main_score(one["scores"]),
                    "scores": one["scores"],
                }
                for one in answers
            ],
        }

    def picture(self, place: int, number: int) -> bytes:
        """Return an image of an item as PNG.

        Raises
        ------
        UserError
            There is none, it cannot be read, or it lies outside the image root (`Outside`).
        """
        return picture(self._reference(place, number))

    def outlines(self, place: int, number: int) -> bytes:
        """Return the outlines of the regions of an image as PNG; raises as `picture`."""
        reference = self._reference(place, number)
        image = opened(reference)
        return outlines(self._regions_of(place, number), image.width, image.height)

    def maps(self, place: int, number: int) -> MapsDocument:
        """Return who looks where in an image of an item; raises as `picture`."""
        first = self._answers(place)[0]
        reference = self._reference(place, number)
        image, notes = opened(reference), []
        target = self._target(reference)
        if self._targets is not None and target is None:
            notes.append("this image is not in the store: no teacher's map and no similarity")
        students = {}
        for name in self._students.names:
            seen = self._students.known(name, first["id"])
            if seen is not None:
                students[name] = self._student_maps(seen, first, number, target)
        regions = self._regions_of(place, number)
        own = None if target is None else teacher_map(target)
        return {
            "width": image.width,
            "height": image.height,
            "box": image_box(image.width, image.height, self._geometry),
            "grid": None if target is None or self._targets is None else self._targets.grid,
            "visible": None if target is None else visible_of(target).tolist(),
            "teacher": None if own is None else _rounded(own),
            "students": students,
            "regions": [
                {"label": label, "colour": colour}
                for label, colour in label_colours(regions).items()
            ],
            "notes": notes,
        }

    def similarity(self, place: int, number: int, patch: int) -> SimilarityDocument:
        """Return how alike a patch is to every patch, for the teacher and students that are known.

        Raises as `picture`, and where there is no such patch.
        """
        first = self._answers(place)[0]
        target = self._target(self._reference(place, number))
        found: SimilarityDocument = {"teacher": None, "students": {}}
        if target is not None:
            if not 0 <= patch < len(target.coverage):
                raise UserError(f"patches are 0 to {len(target.coverage) - 1}, not {patch}")
            found["teacher"] = _rounded(similarity_row(target, patch))
        for name in self._students.names:
            seen = self._students.known(name, first["id"])
            if seen is None or seen.tokens is None:
                continue
            tokens = np.split(seen.tokens.astype(np.float64), len(first["images"]))[number]
            same = target is None or len(tokens) == len(target.coverage)
            if same and 0 <= patch < len(tokens):
                found["students"][name] = _rounded(_cosines(tokens, patch))
        return found

    def ask(self, name: str, place: int) -> dict[str, str]:
        """Put an item's question to an arm, so that `maps` and `similarity` know it.

        Raises UserError as `picture`, or where the model cannot be loaded.
        """
        first = self._answers(place)[0]
        images = [self._reference(place, number) for number in range(len(first["images"]))]
        told = first.get("system", "")
        self._students.ask(name, first["id"], first["question"], images, told)
        return {"asked": name}

    def question(self, place: int, number: int, text: str) -> QuestionDocument:
        """Put a question in words to the store and to the model, of which either may be absent.

        Raises
        ------
        UserError
            As `picture`, the question is empty or too long, or neither can be asked.
        """
        reference, words = self._reference(place, number), checked(text)
        asked = self._questions
        if asked.no_map and asked.no_answer:
            raise UserError(f"{asked.no_map}; {asked.no_answer}")
        found: QuestionDocument = {"question": words, "map": None, "answer": None, "notes": []}
        if not asked.no_map:
            try:
                values = asked.map_of(reference, words)
                if values.any():
                    found["map"] = _rounded(values / values.sum())
                else:
                    found["notes"].append("the map of this question is 0 in every patch")
            except UserError as error:
                if asked.no_answer:
                    raise
                found["notes"].append(str(error))
        if not asked.no_answer:
            found["answer"] = asked.answer(reference, words)
        return found

    def close(self) -> None:
        """Close the answers files."""
        self._table.close()

    def _answers(self, place: int) -> list[AnswerLine]:
        if not 0 <= place < self._table.total:
            raise UserError(f"items are numbered 0 to {self._table.total - 1}, not {place}")
        return self._table.item(place)

    def _reference(self, place: int, number: int) -> ImageReference:
        images = self._answers(place)[0]["images"]
        if not 0 <= number < len(images):
            raise UserError(f"item {place} shows {len(images)} images; there is none {number}")
        return inside(parse_reference(images[number], self._root), self._root)

    def _target(self, reference: ImageReference) -> Target | None:
        return None if self._targets is None else self._targets.of(reference)

    def _regions_of(self, place: int, number: int) -> tuple[Region, ...]:
        image = self._answers(place)[0]["images"][number]
        known = regions_of(self._regions or {}, image)
        return () if known is None else known.regions

    def _student_maps(
        self, seen: Observation, first: AnswerLine, number: int, target: Target | None
    ) -> StudentMaps:
        layers: dict[int, StudentMap] = {}
        patches = 0
        for layer, weights in sorted(seen.attention.items()):
            values = np.split(weights.astype(np.float64), len(first["images"]))[number]
            patches = len(values)
            alike = target is not None and len(target.coverage) == patches
            visible = np.ones(patches, bool)
            if target is not None and alike:
                visible = visible_of(target)
            shares = renormalized(values, visible)
            own = teacher_map(target) if target is not None and alike else None
            layers[layer] = {
                "values": _rounded(shares),
                "divergence": None if own is None else divergence(own, shares),
            }
        return {
            "layer": seen.layer if seen.layer in layers else min(layers),
            "grid": self._grid_of(patches),
            "layers": layers,
            "similarity": seen.tokens is not None,
        }

    def _grid_of(self, patches: int) -> Grid:
        """Return the grid of so many patches: the store's, else a square."""
        if self._targets is not None and self._targets.grid.size == patches:
            return self._targets.grid
        side = round(patches**0.5)
        return Grid(side, side) if side * side == patches else Grid(1, patches)


def _cosines(tokens: np.ndarray, patch: int) -> np.ndarray:
    units = tokens / np.linalg.norm(tokens, axis=1, keepdims=True).clip(1e-12)
    return np.asarray(units @ units[patch])


def _rounded(values: np.ndarray) -> list[float]:
    found: list[float] = np.round(values, 6).tolist()
    return found
