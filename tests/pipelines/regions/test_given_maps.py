"""Maps that a user brings as pictures: on the patches, for their questions, in a store of maps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines.regions.cache import app
from shared.imaging.keys import content_key
from shared.targets import TargetStore
from shared.targets.maps import maps_of
from tests.fixtures.tiny_teacher import arguments, tiny_weights

pytestmark = pytest.mark.integration
WIDE, HIGH = 60, 30  # padded above and below by 15 rows


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    for name in "ab":
        pixels = random.integers(0, 255, (HIGH, WIDE), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{name}.png")
        heat = random.integers(0, 2**16, (HIGH, WIDE)).astype(np.uint16)
        Image.fromarray(heat).save(tmp_path / f"{name}-gaze.png")
    records = [
        {"id": name, "image": f"images/{name}.png", "conversations": [
            {"from": "human", "value": "<image>\nIs there a mass?"}, {"from": "gpt", "value": "No"},
            {"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Nowhere"}]}
        for name in "ab"
    ]  # fmt: skip
    (tmp_path / "data.json").write_text(json.dumps(records))
    weights = tiny_weights(tmp_path / "tiny.safetensors", 0)
    made = CliRunner().invoke(app, arguments(tmp_path / "images", tmp_path / "store", weights))
    assert made.exit_code == 0, made.output
    return tmp_path


def maps(place: Path, rows: list[dict[str, str]], to: str = "maps") -> Any:
    (place / "given.json").write_text(json.dumps({"maps": rows}))
    line = ("query", "maps", "--store", place / "store", "--data", place / "data.json",
            "--image-root", place, "--given", place / "given.json", "--to", place / to,
            "--json")  # fmt: skip
    return CliRunner().invoke(app, list(map(str, line)))


def test_a_picture_is_its_mean_on_each_patch(place: Path) -> None:
    """One picture for a question, one for all of an image; against sums over a fine raster."""
    made = maps(
        place,
        [
            {"image": "images/a.png", "question": "is there a  MASS?", "map": "a-gaze.png"},
            {"image": "images/b.png", "map": "b-gaze.png"},
        ],
    )
    assert made.exit_code == 0, made.output
    said = json.loads(made.stdout)
    assert (said["questions"], said["maps"]) == (4, 3)
    opened = TargetStore.open(place / "maps", maps=True)
    side, (rows, columns) = WIDE, opened.grid
    for name, texts, there in (
        ("a", ["Is there a mass?"], True),
        ("a", ["Where?"], False),
        ("b", ["Is there a mass?"], True),
        ("b", ["Where?"], True),
    ):
        (found,) = maps_of(opened, content_key(place / f"images/{name}.png"), texts)
        assert (found is not None) == there
        if found is None:
            continue
        heat = np.asarray(Image.open(place / f"{name}-gaze.png")).astype(np.float64)
        square = np.zeros((side, side))
        square[(side - HIGH) // 2 : (side + HIGH) // 2] = heat
        fine = np.kron(square, np.ones((rows, columns)))  # each patch is side x side fine pixels
        mean = fine.reshape(rows, side, columns, side).mean(axis=(1, 3)).ravel()
        np.testing.assert_allclose(found / found.sum(), mean / mean.sum(), atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"image": "images/a.png", "map": "missing.png"}], "missing.png"),
        ([{"image": "images/a.png", "map": "small.png"}], "must have its image's size"),
        ([{"image": "images/a.png", "map": "a-gaze.png"}] * 2, "two maps"),
        ([{"image": "images/a.png"}], "holds no maps"),
        ([{"image": "images/z.png", "map": "a-gaze.png"}], "no question of"),
        ([{"image": "images/a.png", "map": "black.png"}], "no question of"),
    ],
)
def test_refusals(place: Path, rows: list[dict[str, str]], said: str) -> None:
    Image.new("L", (5, 5)).save(place / "small.png")
    Image.new("L", (WIDE, HIGH)).save(place / "black.png")
    made = maps(place, rows)
    assert made.exit_code == 1
    assert said in str(made.exception)


def test_other_pictures_are_other_maps(place: Path) -> None:
    rows = [{"image": "images/a.png", "map": "a-gaze.png"}]
    first = json.loads(maps(place, rows).stdout)["namespace"]
    Image.open(place / "b-gaze.png").save(place / "a-gaze.png")
    assert json.loads(maps(place, rows).stdout)["namespace"] != first
