"""What the page shows of a store: its own numbers, drawn for held-out images that are in it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from pipelines.evaluation.loading import load_base_student, load_student
from pipelines.evaluation.observed import observe
from pipelines.report import store_pictures as module
from pipelines.report.figures import AttentionRow
from pipelines.report.store_pictures import full_matrix, store_pictures
from shared.imaging.images import parse_reference
from shared.recipe import load_recipe
from shared.records import load_records
from shared.targets import TargetStore
from tests.fixtures.present import present
from tests.fixtures.runs import write_run
from tests.fixtures.student_runs import write_store

pytestmark = pytest.mark.integration
IMAGES = ["0.png", "1.png"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two arms, and a store with targets of two of its three images."""
    folder = write_run(tmp_path_factory.mktemp("run"), images=3)
    write_store(folder / "store", folder / "data", IMAGES, 4)
    return folder


def test_the_figures_are_given_the_stores_targets(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, tuple[object, ...]] = {}

    def attention(rows: list[AttentionRow]) -> str:
        shown["attention"] = tuple(rows)
        return "<svg>attention</svg>"

    def similarity(*given: object) -> str:
        shown["similarity"] = given
        return "<svg>similarity</svg>"

    monkeypatch.setattr(module, "attention_figure", attention)
    monkeypatch.setattr(module, "similarity_figure", similarity)
    store = TargetStore.open(run / "store", grid=(4, 4))
    recipe = load_recipe(run / "medalign" / "recipe.yaml", [f"targets.store={run / 'store'}"])
    arms = {"LoRA": run / "lora", "MEDALIGN": run / "medalign"}
    records = load_records(run / "data" / "test.json")
    pictures = store_pictures(recipe, arms, records, run / "data")

    assert pictures["attention"] == "<svg>attention</svg>"
    assert pictures["similarity"] == "<svg>similarity</svg>"
    rows = shown["attention"]
    assert len(rows) == len(IMAGES)
    for row in rows:
        assert isinstance(row, AttentionRow)
        assert list(row.maps) == ["teacher", "start", "LoRA", "MEDALIGN"]
        assert list(row.divergence) == ["start", "LoRA", "MEDALIGN"]
        for one in row.maps.values():
            assert one.shape == (4, 4)
            assert one.sum() == pytest.approx(1)
        assert all(value > 0 for value in row.divergence.values())
    _, matrix, grid, patch, visible, students = shown["similarity"]
    assert grid == (4, 4)
    assert any(
        np.array_equal(full_matrix(np.asarray(one.similarity, np.float64), 16), np.asarray(matrix))
        and patch == int(np.argmax(np.where(one.coverage > 0, present(one.attention), -1)))
        and np.array_equal(one.coverage > 0, np.asarray(visible))
        for one in map(store.__getitem__, store.keys())
    )
    assert isinstance(students, dict)
    assert list(students) == ["start", "LoRA", "MEDALIGN"]
    for name, own in students.items():
        assert own.matrix.shape == (16, 16)
        expected = _similarities(run, name, records[0].question)
        np.testing.assert_allclose(own.matrix, expected, rtol=0, atol=1e-6)
        seen = np.asarray(visible)
        kept = np.ix_(seen, seen)
        pairs = np.triu_indices(int(seen.sum()), 1)
        by_scipy = pearsonr(expected[kept][pairs], np.asarray(matrix)[kept][pairs])
        assert own.correlation == pytest.approx(by_scipy.statistic, abs=1e-5)
    sizes = pictures["store"]
    assert sizes is not None
    assert sizes["images"] == len(IMAGES)
    assert sizes["grid"] == "4x4"
    files = [path for path in (run / "store").rglob("*") if path.is_file()]
    inside = [path for path in files if sizes["namespace"] in path.parts]
    assert sizes["bytes"] == sum(path.stat().st_size for path in inside)
    assert sizes["per_image"] == round(sizes["bytes"] / 2)
    assert sizes["pickle_per_image"] > 4 * (16 * 16 + 16)


def _similarities(run: Path, name: str, question: str) -> np.ndarray:
    """S_x of the first image, by torch, of what enters the layer that the recipe names."""
    arm = run / ("lora" if name == "LoRA" else "medalign")
    recipe = load_recipe(arm / "recipe.yaml")
    layer = recipe.losses.layers[0]
    student = load_base_student(arm, recipe) if name == "start" else load_student(arm)
    seen = observe(student, question, [parse_reference(str(run / "data" / "0.png"))], [layer])
    tokens = torch.from_numpy(seen.tokens[layer]).double()
    return torch.nn.functional.cosine_similarity(tokens[:, None], tokens[None], dim=2).numpy()


def test_an_adapter_is_observed_at_the_layer_that_it_was_trained_with(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[AttentionRow]] = []

    def drawn(rows: list[AttentionRow]) -> str:
        shown.append(rows)
        return "<svg/>"

    monkeypatch.setattr(module, "attention_figure", drawn)
    for layer in (2, 1):
        values = [f"targets.store={run / 'store'}", f"losses.layer={layer}"]
        recipe = load_recipe(run / "medalign" / "recipe.yaml", values)
        records = load_records(run / "data" / "test.json")
        store_pictures(recipe, {"MEDALIGN": run / "medalign"}, records, run / "data")
    own, other = (rows[0].maps for rows in shown)
    assert np.array_equal(own["MEDALIGN"], other["MEDALIGN"])
    assert not np.array_equal(own["start"], other["start"])


def test_a_run_without_a_store_shows_none_of_it(run: Path) -> None:
    recipe = load_recipe(run / "lora" / "recipe.yaml")
    found = store_pictures(recipe, {"LoRA": run / "lora"}, [], run / "data")
    assert found == {"attention": None, "similarity": None, "sinks": [], "store": None}


def test_images_that_the_store_lacks_leave_its_sizes(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(run / "medalign" / "recipe.yaml", [f"targets.store={run / 'store'}"])
    records = [
        record
        for record in load_records(run / "data" / "test.json")
        if record.images[0] not in IMAGES
    ]
    found = store_pictures(recipe, {"LoRA": run / "lora"}, records, run / "data")
    assert found["attention"] is found["similarity"] is None
    assert found["store"] is not None
    assert "no held-out image is in the store" in capsys.readouterr().err
