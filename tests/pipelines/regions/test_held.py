"""Which question and which regions stand for an image, and the prior of just those regions."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.regions.held import asked_about, held_out, priors_of
from pipelines.regions.patches import patch_shares
from pipelines.regions.reading import Region, Regions, read_regions
from shared.imaging.grid import Grid
from shared.targets import TargetStore
from tests.fixtures.runs import write_test_set
from tests.fixtures.student_runs import write_store
from tests.fixtures.students import GRID

IMAGES, LIVER, LUNG = 6, "liver", "left lung"


def box(number: int, label: str) -> list[int]:
    return [2 * number, 3, 8, 9] if label == LIVER else [20, number, 9, 12]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three questions an image, the first of which asks for the liver; two views."""
    folder = tmp_path_factory.mktemp("held")
    write_test_set(folder / "data", IMAGES)
    write_store(folder / "store", folder / "data", [f"{n}.png" for n in range(IMAGES)], GRID)
    rows = [
        {
            "image": f"{number}.png",
            "patient": f"p{number // 2}",
            "label": label,
            "boxes": [box(number, label)],
            "view": "axial" if number < 4 else "coronal",
        }
        for number in range(IMAGES)
        for label in (LIVER, LUNG)
        if (number, label) != (1, LIVER)
    ]
    (folder / "regions.json").write_text(json.dumps({"records": rows}))
    return folder


@pytest.mark.unit
def test_a_question_asks_about_the_regions_that_it_names() -> None:
    regions = tuple(Region(label, (1.0, 1.0, 2.0, 2.0)) for label in (LIVER, LUNG))
    known = Regions("p", regions)
    labels = {LIVER, LUNG}
    assert asked_about("Where is the Liver?", known, labels) == regions[:1]
    assert asked_about("Is the left lung beside the liver?", known, labels) == regions
    assert asked_about("Is it delivered?", known, labels) == ()
    assert asked_about("Is it delivered?", Regions("p", regions[:1]), {LIVER}) == regions[:1]
    assert asked_about("Where is the liver?", None, labels) == ()


@pytest.mark.integration
def test_an_image_is_held_with_the_first_question_about_a_region(place: Path) -> None:
    store, known = TargetStore.open(place / "store"), read_regions(place / "regions.json")
    held = held_out(place / "data" / "test.json", None, store, known)
    assert [one.record.id for one in held] == [f"{number}-0" for number in range(IMAGES)]
    assert [len(one.asked) for one in held] == [1, 0, 1, 1, 1, 1]  # no liver in image 1
    chosen = held_out(place / "data" / "test.json", None, store, known, limit=5)
    assert all(one.asked for one in chosen)
    swapped = {
        image: Regions(one.patient, tuple(r._replace(label="tissue") for r in one.regions[:1]))
        for image, one in known.items()
    } | {"none.png": Regions("q", (Region(LIVER, (0.0, 0.0, 1.0, 1.0)),))}
    later = held_out(place / "data" / "test.json", None, store, swapped)
    assert [one.record.id for one in later] == [f"{number}-2" for number in range(IMAGES)]


@pytest.mark.integration
def test_the_prior_is_of_the_same_label_view_and_other_patients(place: Path) -> None:
    store, known = TargetStore.open(place / "store"), read_regions(place / "regions.json")
    held, grid = held_out(place / "data" / "test.json", None, store, known), Grid(GRID, GRID)
    found = priors_of(held, held, grid)
    # Image 0 is of patient 0 and axial: the livers of images 2 and 3 are left.
    others = [patch_shares([box(number, LIVER)], 40, 30, grid, "pad") for number in (2, 3)]  # type: ignore[list-item]
    assert found["0-0"] == pytest.approx(np.mean(others, axis=0))
    assert "1-0" not in found  # asks about no region
    assert "4-0" not in found  # both coronal images are of one patient
