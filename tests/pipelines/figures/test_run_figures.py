"""Figures of a run: their numbers are those of `medalign alignment`, their files repeat."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.markers import MarkerStyle
from PIL import Image
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.figures.attention import Looked, draw_attention, shortened, square_extent
from pipelines.figures.embedding import Labelled, Panel, draw_points, draw_separability
from pipelines.figures.run import parse_where
from pipelines.figures.style import look
from pipelines.regions.measuring import measure
from shared.errors import UserError
from shared.imaging.geometry import content_box, coverage
from shared.imaging.grid import Grid
from tests.fixtures.runs import write_run
from tests.fixtures.tiny_teacher import arguments, tiny_weights

IMAGES = 8


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two arms, the targets of a real teacher, and a box on every image but one."""
    folder = write_run(tmp_path_factory.mktemp("run"), images=IMAGES)
    weights = tiny_weights(folder / "teacher.safetensors")
    command = arguments(folder / "data" / "test.json", folder / "store", weights, "--grid", "4x4")
    made = CliRunner().invoke(app, ["cache", *command])
    assert made.exit_code == 0, made.output
    rows = [
        {
            "image": f"{number}.png",
            "label": "opacity",
            "boxes": [[2 + number, 3, 15, 14]] if number else [],
        }
        for number in range(IMAGES)
    ]
    (folder / "regions.json").write_text(json.dumps({"records": rows}))
    return folder


@pytest.fixture(scope="module")
def alignment(run: Path) -> Any:
    return measure(run, store=str(run / "store"), regions=run / "regions.json")


def figure(run: Path, name: str, out: Path, *more: object) -> Any:
    command = ["figures", name, "--run", run, "--regions", run / "regions.json"]
    command += ["--store", run / "store", "--out", out, *more]
    return CliRunner().invoke(app, [str(part) for part in command])


@pytest.mark.integration
def test_the_attention_figure_has_the_scores_of_the_alignment(
    run: Path, alignment: Any, tmp_path: Path
) -> None:
    result = figure(run, "attention", tmp_path, "--sample", IMAGES)
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path / "attention.csv")
    every = {row["row"] or row["map"] for row in rows}
    assert every == {"layer 2", "all layers", "expert, timm:test_vit", "prior"}
    names = {"teacher": "expert, timm:test_vit", "prior": "prior"}
    for row, scores in alignment["rows"].items():
        own = [
            float(one["auc"])
            for one in rows
            if (one["row"], one["map"]) in {("layer 2", row), ("", names.get(row))}
        ]
        if own:
            assert np.mean(own) == pytest.approx(scores["auc"]["value"], rel=1e-5), row
    maps = rows_of(tmp_path / "attention-maps.csv")
    assert len(maps) == len(rows) * 16
    with Image.open(tmp_path / "attention.png") as picture:
        assert picture.width == 990
    again = tmp_path / "again"
    assert figure(run, "attention", again, "--sample", IMAGES).exit_code == 0
    for name in ("attention.png", "attention.svg", "attention.csv"):
        assert (tmp_path / name).read_bytes() == (again / name).read_bytes(), name


@pytest.mark.integration
def test_one_record_is_chosen_and_the_prior_is_still_of_all(run: Path, tmp_path: Path) -> None:
    assert figure(run, "attention", tmp_path / "all", "--sample", IMAGES).exit_code == 0
    assert figure(run, "attention", tmp_path / "one", "--where", "id=3-0").exit_code == 0
    one = rows_of(tmp_path / "one" / "attention.csv")
    assert {row["image"] for row in one} == {"3-0"}
    assert one == [
        row for row in rows_of(tmp_path / "all" / "attention.csv") if row["image"] == "3-0"
    ]
    failed = figure(run, "attention", tmp_path, "--where", "id=nobody")
    assert isinstance(failed.exception, UserError)
    assert "id=nobody" in str(failed.exception)


@pytest.mark.integration
def test_the_separability_figure_has_the_scores_of_the_alignment(
    run: Path, alignment: Any, tmp_path: Path
) -> None:
    more = ("--layers", "0,2", "--perplexity", 5, "--weights", run / "teacher.safetensors")
    result = figure(run, "separability", tmp_path, *more)
    assert result.exit_code == 0, result.output
    found = {
        row["panel"]: float(row["separable"]) for row in rows_of(tmp_path / "separability.csv")
    }
    assert set(found) == {
        *(f"layer {layer}, {row}" for layer in (0, 2) for row in ("before", "LoRA", "MEDALIGN")),
        "timm:test_vit",
    }
    for row in ("before", "LoRA", "MEDALIGN"):
        value = alignment["rows"][row]["separable"]["value"]
        assert found[f"layer 2, {row}"] == pytest.approx(value, rel=1e-5)
    text = (tmp_path / "separability.svg").read_text()
    assert "perplexity 5, seed 0" in text
    failed = figure(run, "separability", tmp_path, "--layers", "0,9", "--perplexity", 5)
    assert "decoder layers 0..3" in str(failed.exception)
    failed = figure(run, "separability", tmp_path, "--layers", "0", "--perplexity", 90, *more[4:])
    assert "--perplexity 90" in str(failed.exception)


@pytest.mark.unit
def test_points_are_patches_of_one_label_and_equally_many() -> None:
    first, second = np.arange(40) < 24, np.arange(40) >= 20  # they share four patches
    image = Labelled("a", "p", [("x", first), ("y", second)])
    points = draw_points([image, image], seed=0, most=40)
    assert all(not 20 <= point.patch < 24 for point in points)
    assert [sum(point.label == label for point in points) for label in "xy"] == [20, 20]
    assert points == draw_points([image, image], seed=0, most=40)


@pytest.mark.unit
def test_clusters_stay_clusters_in_the_picture(tmp_path: Path) -> None:
    """Two well separated labels: every point's nearest drawn neighbour has its label."""
    random = np.random.default_rng(0)
    inside = np.arange(16) < 8
    images = [Labelled(str(n), str(n), [("in", inside), ("out", ~inside)]) for n in range(6)]
    tokens = [random.normal(size=(16, 8)) * 0.1 + np.outer(inside, np.ones(8)) for _ in images]
    panel = Panel("", "expert", images, [one.astype(np.float32) - 0.4 for one in tokens])
    draw_separability([panel], tmp_path, perplexity=10.0)
    points = rows_of(tmp_path / "separability-points.csv")
    places = np.array([[float(row["x"]), float(row["y"])] for row in points])
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    labels = [row["label"] for row in points]
    assert all(labels[near] == own for near, own in zip(distance.argmin(1), labels, strict=True))
    [score] = rows_of(tmp_path / "separability.csv")
    assert (float(score["separable"]), float(score["chance"])) == (1.0, 0.5)


@pytest.mark.unit
@pytest.mark.parametrize("geometry", ["pad", "crop"])
@pytest.mark.parametrize(("width", "height"), [(40, 40), (40, 30), (21, 50)])
def test_maps_lie_where_the_encoder_s_patches_do(width: int, height: int, geometry: Any) -> None:
    """A patch's share of the image, from the extent, is the coverage that training sees."""
    left, right, bottom, top = square_extent(width, height, geometry)
    side = (max if geometry == "pad" else min)(width, height)
    assert (right - left, bottom - top) == (side, side)
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((width / 2, height / 2), abs=1)
    columns, rows = (np.linspace(a, b, 6) for a, b in ((left, right), (top, bottom)))
    across = np.clip(np.minimum(columns[1:], width) - np.maximum(columns[:-1], 0), 0, None)
    down = np.clip(np.minimum(rows[1:], height) - np.maximum(rows[:-1], 0), 0, None)
    share = np.outer(down, across).ravel() / (side / 5) ** 2
    expected = coverage(content_box(width, height, geometry), Grid(5, 5)) / 255
    assert np.abs(share - expected).max() <= 1 / 255 + 1e-9


@pytest.mark.unit
def test_masks_are_outlined_too(tmp_path: Path) -> None:
    from pipelines.regions.masks import Mask

    pixels = np.zeros((30, 40), dtype=np.uint8)
    pixels[5:15, 10:30] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    map_ = np.arange(4.0)
    base = {"before": map_}
    looked = Looked(
        "a", np.full((30, 40, 3), 90, np.uint8), [Mask(tmp_path / "mask.png")],
        {"layer 1": base, "all layers": base}, {}, np.array([1.0, 0, 0, 0]),
        np.array([True, False, False, False]), np.ones(4, dtype=bool), "pad",
    )  # fmt: skip
    draw_attention([looked], Grid(2, 2), tmp_path)
    [first, _] = rows_of(tmp_path / "attention.csv")
    assert (float(first["pointing"]), float(first["auc"])) == (0.0, 0.0)


@pytest.mark.unit
def test_a_map_covers_a_quarter_of_the_image_where_it_is_low_and_three_where_high(
    tmp_path: Path,
) -> None:
    """Over white, by the formula of alpha compositing, with the ends of matplotlib's viridis."""
    looked = Looked(
        "a", np.full((40, 40, 3), 255, np.uint8), [(0.0, 0.0, 20.0, 20.0)],
        {"layer 1": {"before": np.array([0.0, 1, 1, 1])}}, {}, np.array([1.0, 0, 0, 0]),
        np.array([True, False, False, False]), np.ones(4, dtype=bool), "pad",
    )  # fmt: skip
    draw_attention([looked], Grid(2, 2), tmp_path)
    with Image.open(tmp_path / "attention.png") as drawn:
        colours, counts = np.unique(
            np.asarray(drawn.convert("RGB")).reshape(-1, 3), axis=0, return_counts=True
        )
    low, high = (np.array(colormaps["viridis"](end))[:3] * 255 for end in (0.0, 1.0))
    white, *shown = colours[np.argsort(-counts)[:3]]  # the page and the bare image, the two parts
    assert white.tolist() == [255, 255, 255]
    expected = [255 * 0.25 + high * 0.75, 255 * 0.75 + low * 0.25]  # of three patches, of one
    assert np.abs(np.array(shown) - expected).max() < 1


@pytest.mark.unit
def test_no_two_labels_look_alike() -> None:
    assert len({look(number) for number in range(64)}) == 64
    # Filled markers of matplotlib, and the eight colours of Okabe and Ito (2008).
    assert {look(number)[0] for number in range(64)} <= set(MarkerStyle.filled_markers)
    assert {look(number)[1] for number in range(64)} == {
        "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
    }  # fmt: skip


@pytest.mark.unit
def test_long_titles_lose_their_middle() -> None:
    assert shortened("axial-095") == "axial-095"
    title = shortened("axial-095-presence-parietal-lobe")
    assert (len(title), title[:9], title[-4:]) == (23, "axial-095", "lobe")


@pytest.mark.unit
def test_fields_are_read_from_the_command_line() -> None:
    assert parse_where("modality=CT, location=Abdomen") == {"modality": "CT", "location": "Abdomen"}
    assert parse_where(None) == {}
    with pytest.raises(UserError, match="FIELD=VALUE"):
        parse_where("CT")
