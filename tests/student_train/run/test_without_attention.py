"""Training on a store of S_e alone: L_att is off and said to be, or refused before any loading."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import UserError
from shared.imaging.grid import Grid
from student_train.data.join import build_line, open_stores
from student_train.run.beginning import begin
from student_train.run.train import train
from tests.fixtures.student_runs import recipe, write_run, write_store
from tests.fixtures.students import GRID

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("student")
    values = write_run(folder)
    names = sorted(path.name for path in (folder / "images").iterdir())
    values["targets"]["store"] = str(
        write_store(folder / "alone", folder / "images", names, attention="none")
    )
    return values


def test_a_run_trains_the_other_terms_and_says_so(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = train(recipe(values, output=str(tmp_path / "run"), losses__beta=0))
    said = [line for line in capsys.readouterr().err.split("\n") if "L_att" in line]
    assert len(said) == 1
    assert said[0].startswith("L_att is off: dinov2-small-")
    assert said[0].endswith("holds S_e alone")
    rows = json.loads((Path(output) / "trainer_state.json").read_text())["log_history"]
    terms = [row for row in rows if "loss_lm" in row]
    assert terms
    assert all(row["loss_vis"] > 0 and "loss_att" not in row for row in terms)


def test_beta_above_zero_is_refused_before_a_model_is_loaded(values: dict[str, Any]) -> None:
    wanted = r"holds S_e alone .*losses.beta=0.1 trains L_att: set losses.beta=0, or name a store"
    with pytest.raises(UserError, match=wanted):
        begin(recipe(values, model__name="nowhere/at-all"))
    with pytest.raises(UserError, match=wanted):
        open_stores(recipe(values), Grid(GRID, GRID))


def test_the_line_that_adds_images_builds_the_same_kind(values: dict[str, Any]) -> None:
    chosen = recipe(values, losses__beta=0)
    [store] = open_stores(chosen, Grid(GRID, GRID))
    assert "--attention none" in build_line(chosen, store, "train.json", Path("images"))


def test_one_of_two_teachers_without_attention(values: dict[str, Any], tmp_path: Path) -> None:
    """L_att is a mean over the teachers: it is off for both, or refused."""
    images = Path(values["data"]["image_root"])
    names = sorted(path.name for path in images.iterdir())
    store = write_store(tmp_path / "two", images, names, teacher="first")
    write_store(store, images, names, teacher="second", attention="none")
    both = {"targets__store": str(store), "targets__teacher": ["first", "second"]}
    with pytest.raises(UserError, match=r"second-.* holds S_e alone"):
        train(recipe(values, output=str(tmp_path / "a"), **both))
    output = train(recipe(values, output=str(tmp_path / "b"), losses__beta=0, **both))
    assert (Path(output) / "adapter_model.safetensors").is_file()
