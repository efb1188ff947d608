"""The chest student's regression: which images it sees, and what it wants each patch to say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.datasets.nih_rsna.reading import Box
from pipelines.demo import chest
from pipelines.demo.projector import GRID
from shared.errors import UserError

pytestmark = pytest.mark.unit
BOXES: dict[str, list[Box]] = {
    "00000001_000": [(2.0, 4.0, 10.0, 12.0)],
    "00000002_000": [],
    "00000003_000": [(0.0, 0.0, 4.0, 4.0), (20.0, 8.0, 6.0, 6.0)],
}
MARKED: Box = (5.0, 5.0, 8.0, 8.0)


def write_set(folder: Path) -> Path:
    """Three X-rays, and a copy of the second with a box that is none of its own."""
    (folder / "images").mkdir(parents=True)
    for number, name in enumerate([*BOXES, "00000002_000-box"]):
        picture = Image.fromarray(np.full((32, 40), 60 * number, np.uint8))
        picture.save(folder / "images" / f"{name}.png")
    regions = [{"image": f"images/{name}.png", "boxes": boxes} for name, boxes in BOXES.items()]
    (folder / "regions.json").write_text(json.dumps({"schema": 1, "records": regions}))
    rows = [row(name, name) for name in BOXES] + [
        {**row("00000002_000-box", "00000002_000"), "box": MARKED},
        {**row("00000003_000", "00000003_000"), "id": "again"},
    ]
    (folder / "fold0").mkdir()
    (folder / "fold0" / "train.json").write_text(json.dumps(rows))
    return folder


def row(image: str, xray: str) -> dict[str, object]:
    turns = [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "there"}]
    path = f"images/{image}.png"
    return {"id": image, "image": path, "xray": xray, "conversations": turns}


def test_each_image_has_the_boxes_of_its_own_x_ray_and_the_one_drawn_on_it(tmp_path: Path) -> None:
    pictures = chest._pictures(write_set(tmp_path / "set"), "fold0", "train")
    found = {one.file.stem: [tuple(box) for box in one.opacities] for one in pictures}
    assert found == {**BOXES, "00000002_000-box": []}
    assert len(pictures) == 4
    assert {(one.width, one.height) for one in pictures} == {(40, 32)}
    drawn = {one.file.stem: [tuple(box) for box in one.marked] for one in pictures if one.marked}
    assert drawn == {"00000002_000-box": [MARKED]}
    with pytest.raises(UserError, match=r"has no fold1/train\.json"):
        chest._pictures(tmp_path / "set", "fold1", "train")


def test_a_patch_s_share_is_the_area_of_the_boxes_in_the_padded_square() -> None:
    """An image as wide as the student's square and half as high: nothing is resampled."""
    side = GRID * 14
    picture = chest._Picture(Path(), side, side // 2, [], [])
    boxes: list[Box] = [(10.0, 3.0, 40.0, 30.0), (45.0, 20.0, 21.0, 36.0)]
    painted = np.zeros((side, side))
    for x, y, width, height in boxes:
        top, left = side // 4 + int(y), int(x)
        painted[top : top + int(height), left : left + int(width)] = 1
    expected = painted.reshape(GRID, 14, GRID, 14).mean(axis=(1, 3))
    found = chest._share(picture, boxes)
    assert found.shape == (GRID * GRID, 1)
    assert found.reshape(GRID, GRID).numpy() == pytest.approx(expected, abs=1e-6)


def test_a_patch_says_what_it_shows_and_where_it_lies() -> None:
    """The words as unit vectors: each one's part of what a patch should say is its own number."""
    words = {name: torch.eye(len(chest.NAMES))[i] for i, name in enumerate(chest.NAMES)}
    picture = chest._Picture(Path(), 28, 28, [(0.0, 0.0, 14.0, 28.0)], [(14.0, 0.0, 14.0, 14.0)])
    said = chest._wanted(picture, words, 0.25).reshape(GRID, GRID, -1)
    parts = {name: said[..., i].numpy() for i, name in enumerate(chest.NAMES)}
    left, right = (slice(None), slice(0, GRID // 2 - 1)), (slice(None), slice(GRID // 2 + 1, GRID))
    # The image has an opacity where 25% have one: 0.75 more than on average, at every patch.
    assert np.allclose(parts["opacity"][left], 1.75)
    assert np.allclose(parts["opacity"][right], 0.75)
    assert np.allclose(parts["clear"][left], 0)
    assert np.allclose(parts["clear"][right], 1)
    # The picture's left is the patient's right.
    assert np.allclose(parts["right"][left], 0.5)
    assert np.allclose(parts["left"][right], 0.5)
    assert np.allclose(parts["box"][: GRID // 2 - 1, GRID // 2 + 1 :], 1)
    assert np.allclose(parts["box"][GRID // 2 + 1 :], 0)
    zones = parts["upper"] + parts["middle"] + parts["lower"]
    assert np.allclose(zones, 0.5)
    assert np.allclose(parts["upper"][0], 0.5)
    assert np.allclose(parts["lower"][-1], 0.5)
