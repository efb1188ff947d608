"""The control "names swapped": a question that names a side, asked with left and right exchanged.

Each image with a region on the side that one of its questions names is asked that question as it
is, and with the sides exchanged. Both maps are scored against the same region: the one on the named
side. A map that follows the words leaves the region when the other side is named; one that scores
the same looks there whatever is asked.

A region is on the side that its label names. Where the label names none, it is on that of its
middle: the picture's left is the patient's right, as in frontal X-rays and axial slices. In a view
from the side there is no such half, so those are left out.

`separable` stands beside it. A decoder's patches do not see what is asked behind them, so it is the
same under both questions wherever the image comes first; a difference shows a student whose
patches know the question.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from pipelines.evaluation.sides import Side, mirrored_record, side_named
from pipelines.regions.grounding import SCORES
from pipelines.regions.held import Held, asked_about
from pipelines.regions.masks import Mask, pixels_of
from pipelines.regions.reading import Region
from pipelines.regions.scoring import Scores, Test, Value, tests_of, values_of
from shared.records import load_records

SWAPPED = "names swapped"
FROM_THE_SIDE = ("sagittal", "lateral")  # views


class Sides(TypedDict):
    """The two questions' scores over `images` images, by row, and the paired tests of them."""

    images: int
    rows: dict[str, dict[str, Value]]
    tests: list[Test]


def sided_of(data: Path, held: Sequence[Held]) -> list[Held]:
    """Return the images of which a question names one side, with that question and that region.

    Of several such questions about an image it is the first.
    """
    labels = {region.label for one in held if one.regions for region in one.regions.regions}
    images = {one.record.images[0]: one for one in held if one.regions and one.regions.regions}
    found: dict[str, Held] = {}
    for record in load_records(data):
        if len(record.images) != 1 or record.images[0] in found:
            continue
        image, side = images.get(record.images[0]), side_named(record.question)
        if image is None or side is None:
            continue
        about = asked_about(record.question, image.regions, labels)
        asked = tuple(region for region in about if _side_of(region, image) == side)
        if asked:
            found[record.images[0]] = image._replace(record=record, asked=asked)
    return list(found.values())


def with_names_swapped(sided: Sequence[Held]) -> list[Held]:
    """Return the same images and regions, asked about the other side."""
    return [one._replace(record=mirrored_record(one.record)) for one in sided]


def _side_of(region: Region, image: Held) -> Side | None:
    """Return the patient's side on which a region is; None in a view from the side."""
    named = side_named(region.label)
    if named is not None:
        return named
    if image.regions is not None and image.regions.view in FROM_THE_SIDE:
        return None
    if isinstance(region.place, Mask):
        columns = np.nonzero(pixels_of(region.place, image.width, image.height))[1]
        middle = float(columns.mean()) + 0.5 if len(columns) else image.width / 2
    else:
        x, _, across, _ = region.place
        middle = x + across / 2
    return "right" if middle < image.width / 2 else "left"


def sides_of(rows: Mapping[str, tuple[Scores, Scores]], sided: Sequence[Held]) -> Sides:
    """Compare the scores of each row's maps under its own questions and under the swapped ones."""
    patients = {one.record.id: one.patient for one in sided}
    kept = (*SCORES, "separable")
    both: dict[str, Scores] = {}
    for name, pair in rows.items():
        for row, scores in zip((name, f"{name}, {SWAPPED}"), pair, strict=True):
            both[row] = {
                item: {score: value for score, value in own.items() if score in kept}
                for item, own in scores.items()
            }
    pairs = [(name, f"{name}, {SWAPPED}") for name in rows]
    return {
        "images": len(sided),
        "rows": values_of(both, patients),
        "tests": tests_of(pairs, both, patients),
    }
