"""The control `names swapped`: which question and region stand for an image, and its scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.evaluation.loading import load_student
from pipelines.evaluation.observed import observe
from pipelines.evaluation.sides import side_named
from pipelines.regions.held import held_out
from pipelines.regions.measuring import BEFORE, measure
from pipelines.regions.reading import read_regions
from pipelines.regions.sided import sided_of, with_names_swapped
from pipelines.regions.table import lines_of
from shared.imaging.images import ImageReference
from shared.records import Record, Turn, write_records
from shared.targets import TargetStore
from tests.fixtures.runs import write_run
from tests.fixtures.student_runs import write_store
from tests.fixtures.students import GRID

pytestmark = pytest.mark.integration
IMAGES = 8
BOTH = "Which lung is opaque: right, left or both?"
RIGHT, LEFT = (f"Is there an opacity in the {side} lung?" for side in ("right", "left"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 40 x 30. Even ones have a box on the picture's left, odd ones one on its right.

    All are asked about both lungs, then about the right one, then about the left one.
    """
    folder = write_run(tmp_path_factory.mktemp("run"), images=IMAGES)
    names = [f"{number}.png" for number in range(IMAGES)]
    write_store(folder / "store", folder / "data", names)
    records = [
        Record(f"{number}-{place}", (name,), (Turn("human", f"<image>\n{text}"), Turn("gpt", "x")))
        for number, name in enumerate(names)
        for place, text in enumerate((BOTH, RIGHT, LEFT))
    ]
    write_records(folder / "data" / "sided.json", records)
    rows = [
        {
            "image": name,
            "patient": f"p{number // 2}",
            "label": "opacity",
            "boxes": [[2 + 20 * (number % 2), 4, 16, 14]],
        }
        for number, name in enumerate(names)
    ]
    (folder / "regions.json").write_text(json.dumps({"records": rows}))
    return folder


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("Is the Left lung clear?", "left"),
        ("right-sided effusion, RT", "right"),
        ("左肺正常吗", "left"),
        ("right, left or both?", None),
        ("Is the liver here?", None),
        ("leftover of an upright film", None),
    ],
)
def test_a_text_names_one_side_or_none(text: str, side: str | None) -> None:
    assert side_named(text) == side


def test_the_question_is_the_first_about_the_side_with_a_region(run: Path) -> None:
    """The picture's left is the patient's right."""
    data = run / "data" / "sided.json"
    regions = read_regions(run / "regions.json")
    held = held_out(data, None, TargetStore.open(run / "store"), regions)
    sided = sided_of(data, held)
    assert [one.record.question for one in sided] == [RIGHT, LEFT] * (IMAGES // 2)
    assert [one.record.question for one in with_names_swapped(sided)] == [LEFT, RIGHT] * (
        IMAGES // 2
    )
    assert [[region.place for region in one.asked] for one in sided] == [
        [(2.0 + 20 * (number % 2), 4.0, 16.0, 14.0)] for number in range(IMAGES)
    ]
    assert sided_of(run / "data" / "test.json", held) == []  # no question names a side


@pytest.mark.parametrize(
    ("label", "view", "kept"),
    [
        ("left lung", None, [LEFT]),  # the label stands over the half of the picture
        ("right lung", "lateral", [RIGHT]),
        ("lung", None, [RIGHT]),
        ("lung", "sagittal", []),
    ],
)
def test_a_label_or_the_pictures_half_names_the_regions_side(
    run: Path, tmp_path: Path, label: str, view: str | None, kept: list[str]
) -> None:
    """One image with a mask on the picture's left."""
    pixels = np.zeros((30, 40), dtype=np.uint8)
    pixels[5:20, 3:15] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    row = {"image": "0.png", "label": label, "masks": ["mask.png"], "view": view}
    (tmp_path / "regions.json").write_text(json.dumps({"records": [row]}))
    data = run / "data" / "sided.json"
    known = read_regions(tmp_path / "regions.json")
    held = held_out(data, None, TargetStore.open(run / "store"), known)
    assert [one.record.question for one in sided_of(data, held)] == kept


@pytest.fixture(scope="module")
def found(run: Path) -> Any:
    return measure(
        run,
        data=run / "data" / "sided.json",
        store=str(run / "store"),
        regions=run / "regions.json",
    )


def test_both_maps_are_scored_against_the_region_of_the_named_side(run: Path, found: Any) -> None:
    """Pointing and energy again, patch by patch, under questions written out here."""
    sides = found["sides"]
    assert sides["images"] == IMAGES
    student = load_student(run / "medalign")
    for row, questions in (
        ("MEDALIGN", (RIGHT, LEFT)),
        ("MEDALIGN, names swapped", (LEFT, RIGHT)),
    ):
        pointing, energy = [], []
        for number in range(IMAGES):
            reference = ImageReference(run / "data" / f"{number}.png")
            map_ = observe(student, questions[number % 2], [reference], [2]).attention[2]
            cover = [0.0] * number_of_padding(run, number) + [1.0] * GRID * GRID
            seen = [value * shown for value, shown in zip(map_, cover, strict=False)]
            left, top = 2 + 20 * (number % 2), 4 + 5  # on the square of 40, padded by 5
            shares, centres = [], []
            for patch in range(GRID * GRID):
                x, y = 10 * (patch % GRID), 10 * (patch // GRID)
                across = min(left + 16, x + 10) - max(left, x)
                down = min(top + 14, y + 10) - max(top, y)
                shares.append(max(across, 0) * max(down, 0) / 100)
                centres.append(left <= x + 5 < left + 16 and top <= y + 5 < top + 14)
            pointing.append(float(centres[int(np.argmax(seen))]))
            energy.append(float(np.dot(seen, shares) / np.sum(seen)))
        assert sides["rows"][row]["pointing"]["value"] == pytest.approx(np.mean(pointing))
        assert sides["rows"][row]["energy"]["value"] == pytest.approx(np.mean(energy), abs=2e-3)


def number_of_padding(run: Path, number: int) -> int:
    """Patches of an image that its target says show none: the first ones."""
    from shared.imaging.keys import content_key

    target = TargetStore.open(run / "store")[content_key(run / "data" / f"{number}.png")]
    return int((np.asarray(target.coverage) == 0).sum())


def test_patches_do_not_see_the_question_and_the_tests_are_paired(found: Any) -> None:
    """The image comes first in the prompt, so `separable` cannot change; attention can."""
    rows = found["sides"]["rows"]
    for name in (BEFORE, "LoRA", "MEDALIGN"):
        assert rows[f"{name}, names swapped"]["separable"] == rows[name]["separable"]
    tests = found["sides"]["tests"]
    assert {(one["a"], one["b"]) for one in tests} == {
        (name, f"{name}, names swapped") for name in (BEFORE, "LoRA", "MEDALIGN")
    }
    energy = {one["a"]: one for one in tests if one["score"] == "energy"}
    for name, one in energy.items():
        own, other = (rows[row]["energy"]["value"] for row in (name, f"{name}, names swapped"))
        assert one["difference"] == pytest.approx(own - other)
        assert one["patients"] == IMAGES // 2
    assert any(one["difference"] != 0 for one in energy.values())
    lines = list(lines_of(found))
    assert max(map(len, lines)) <= 80
    assert any("with left and right exchanged" in line for line in lines)


def test_a_run_without_sided_questions_has_no_such_rows(run: Path) -> None:
    plain = measure(run, store=str(run / "store"), regions=run / "regions.json")
    assert "sides" not in plain
