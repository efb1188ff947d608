"""Regions that would be lost, or be of other places, without a word: each is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.regions.patches import inside, patch_shares
from pipelines.regions.reading import read_regions
from shared.errors import UserError
from shared.imaging.grid import Grid

pytestmark = pytest.mark.unit
BOX = [2.0, 2.0, 5.0, 5.0]


def coco(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [{"image_id": 1, "bbox": BOX, "category_id": 1}],
        "categories": [{"id": 1, "name": "mass"}],
    }
    return {**whole, **changes}


def ours(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"records": [{"image": "a.png", "boxes": [BOX], **row} for row in rows]}


def written(folder: Path, document: dict[str, Any]) -> Path:
    (folder / "regions.json").write_text(json.dumps(document))
    return folder / "regions.json"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (coco(images=[{"id": "1", "file_name": "a.png"}]), "'1' is, of another type"),
        (coco(images=[{"id": 7, "file_name": "a.png"}]), "not among the ids of `images`"),
        (coco(categories=[{"id": 9, "name": "mass"}]), "not among the ids of `categories`"),
        (
            coco(
                images=[
                    {"id": 1, "file_name": "a.png", "patient": "1"},
                    {"id": 2, "file_name": "a.png", "patient": "2"},
                ]
            ),
            "of the patient 1 and of 2",
        ),
        (ours({"patient": "1"}, {"patient": "2"}), "of the patient 1 and of 2"),
        (ours({"boxes": [[0.1, 0.2, 0.3, 0.4]]}), "fractions of the image"),
        (
            coco(annotations=[{"image_id": 1, "bbox": [0, 0, 1, 0.5], "category_id": 1}]),
            "fractions",
        ),
    ],
)
def test_what_would_be_lost_is_refused(tmp_path: Path, document: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        read_regions(written(tmp_path, document))
    assert said in str(error.value)


def test_one_file_listed_twice_keeps_the_boxes_of_both(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "a.png"}]
    found = read_regions(written(tmp_path, coco(images=images)))
    assert [one.label for one in found["a.png"].regions] == ["mass"]


def test_null_says_nothing(tmp_path: Path) -> None:
    rows = ours({"patient": None, "label": None}, {"image": "b.png", "patient": None})
    found = read_regions(written(tmp_path, rows))
    assert (found["a.png"].patient, found["b.png"].patient) == ("a.png", "b.png")
    assert found["a.png"].regions[0].label == "region"


@pytest.mark.parametrize("box", [(5000.0, 5000.0, 100.0, 100.0), (38.0, 0.0, 10.0, 5.0)])
@pytest.mark.parametrize("geometry", ["pad", "crop"])
def test_a_box_beside_its_image_is_refused(box: Any, geometry: Any) -> None:
    for place in (patch_shares, inside):
        with pytest.raises(UserError, match="lies beside its image, which is 40 x 30"):
            place([box], 40, 30, Grid(4, 4), geometry)


def test_a_box_a_little_over_the_edge_is_cut() -> None:
    assert patch_shares([(30.0, 0.0, 12.0, 10.0)], 40, 40, Grid(4, 4), "pad").sum() == 1
