"""Audit, alignment, oracle, figures, page of a store of S_e alone: what needs E_a is left out."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.regions.audit import audit
from pipelines.regions.experts import CHANCE, FEATURES, OTHER, OWN, SIMILARITY
from pipelines.regions.measuring import BEFORE, measure
from pipelines.regions.table import audit_lines, lines_of
from pipelines.report import store_pictures as module
from pipelines.report.figures import AttentionRow
from pipelines.report.store_pictures import store_pictures
from shared.recipe import load_recipe
from shared.records import load_records
from shared.targets import TargetStore
from tests.fixtures.present import present
from tests.fixtures.runs import write_run
from tests.fixtures.tiny_teacher import arguments, tiny_weights

pytestmark = pytest.mark.integration
IMAGES = 8


def command(*words: object) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two arms, a box on each image, its targets whole and of S_e alone."""
    folder = write_run(tmp_path_factory.mktemp("run"), images=IMAGES)
    weights = tiny_weights(folder / "teacher.safetensors")
    words = arguments(folder / "data" / "test.json", folder / "alone", weights, "--grid", "4x4")
    command("cache", *words, "--attention", "none")
    words[words.index(str(folder / "alone"))] = str(folder / "whole")
    command("cache", *words)
    rows = [
        {
            "image": f"{number}.png",
            "patient": f"p{number}",
            "label": "opacity",
            "boxes": [[2 + number, 3, 15, 14]],
        }
        for number in range(IMAGES)
    ]
    (folder / "regions.json").write_text(json.dumps({"records": rows}))
    return folder


def test_the_audit_scores_features_and_similarities(run: Path) -> None:
    more = {"image_root": run / "data", "weights": str(run / "teacher.safetensors")}
    whole, alone = (
        audit(run / name, run / "regions.json", device="cpu", **more)  # type: ignore[arg-type]
        for name in ("whole", "alone")
    )
    [whole_rows] = [one["rows"] for one in whole["teachers"].values()]
    [alone_rows] = [one["rows"] for one in alone["teachers"].values()]
    assert {FEATURES, SIMILARITY, CHANCE} <= set(alone_rows)
    assert set(whole_rows) - set(alone_rows) == {OWN, OTHER}
    assert alone_rows == {name: whole_rows[name] for name in alone_rows}
    assert audit_lines(alone)


def test_the_alignment_leaves_out_the_loss_and_the_teachers_map(run: Path) -> None:
    regions = run / "regions.json"
    whole, alone = (
        measure(run, store=str(run / name), regions=regions) for name in ("whole", "alone")
    )
    assert {"teacher", "teacher, other patient"} <= set(whole["rows"])
    assert set(whole["rows"]) - set(alone["rows"]) == {"teacher", "teacher, other patient"}
    for name, values in alone["rows"].items():
        expected = {key: one for key, one in whole["rows"][name].items() if key != "loss_att"}
        assert values == expected
    assert "loss_vis" in alone["rows"][BEFORE]
    assert lines_of(alone)


def test_the_oracle_is_of_the_same_kind(run: Path, tmp_path: Path) -> None:
    words = ["oracle", "--regions", run / "regions.json", "--image-root", run / "data"]
    command(*words, "--store", run / "whole", "--to", tmp_path / "whole")
    command(*words, "--store", run / "alone", "--to", tmp_path / "alone")
    whole, alone = (TargetStore.open(tmp_path / name) for name in ("whole", "alone"))
    for key in whole.keys():  # noqa: SIM118
        np.testing.assert_array_equal(whole[key].similarity, alone[key].similarity)
        assert alone[key].attention is None
        assert present(whole[key].attention).sum() == pytest.approx(1, abs=1e-5)


def test_maps_for_questions_are_written_for_its_images(run: Path, tmp_path: Path) -> None:
    words = ["cache", "query", "maps", "--data", run / "data" / "test.json"]
    words += ["--regions", run / "regions.json", "--image-root", run / "data", "--json"]
    made = []
    for name in ("whole", "alone"):
        out = command(*words, "--store", run / name, "--to", tmp_path / name).stdout
        made.append(TargetStore.open(tmp_path / name, maps=True))
        assert json.loads(out)["maps"] > 0
    whole, alone = made
    assert list(whole.keys()) == list(alone.keys())
    for key in whole.keys():  # noqa: SIM118
        expected = whole.arrays([key])["attention"]
        np.testing.assert_array_equal(alone.arrays([key])["attention"], expected)


def test_the_figure_has_no_map_of_the_expert(run: Path, tmp_path: Path) -> None:
    words = ["figures", "attention", "--run", run, "--regions", run / "regions.json"]
    command(*words, "--store", run / "alone", "--out", tmp_path)
    _, *lines = (tmp_path / "attention.csv").read_text().strip().split("\n")
    maps = {line.split(",")[2] for line in lines}
    assert "before" in maps
    assert not any(name.startswith("expert") for name in maps)


def test_the_page_shows_the_students(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[AttentionRow] = []
    patches: list[int] = []

    def attention(rows: list[AttentionRow]) -> str:
        shown.extend(rows)
        return ""

    def similarity(picture: object, matrix: object, grid: object, patch: int, *_: object) -> str:
        patches.append(patch)
        return ""

    monkeypatch.setattr(module, "attention_figure", attention)
    monkeypatch.setattr(module, "similarity_figure", similarity)
    recipe = load_recipe(run / "medalign" / "recipe.yaml", [f"targets.store={run / 'alone'}"])
    arms = {"LoRA": run / "lora", "MEDALIGN": run / "medalign"}
    records = load_records(run / "data" / "test.json")
    pictures = store_pictures(recipe, arms, records, run / "data")
    assert [list(row.maps) for row in shown] == [["start", "LoRA", "MEDALIGN"]] * len(shown)
    assert [row.divergence for row in shown] == [{}] * len(shown)
    assert patches == [2 * 4 + 2]
    one = {"similarity": np.zeros((16, 16), np.float32)}
    matrix_alone = pickle.dumps(one, protocol=pickle.HIGHEST_PROTOCOL)
    assert present(pictures["store"])["pickle_per_image"] == len(matrix_alone)
