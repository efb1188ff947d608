"""The demo's bookkeeping (what is done, what is affordable), and one small demo from end to end."""

import json
import os
import sys
from pathlib import Path

import pytest

from pipelines import stages as diary_module
from pipelines.demo import pipeline
from pipelines.demo.pipeline import FULL, SHORT, Budget
from pipelines.stages import Diary, Stage
from shared.errors import UserError
from shared.recipe import load_recipe

TINY = Budget("tiny", 1, arm_steps=2, test_items=8, observed=6, control_items=4)


def counting(counter: Path) -> list[str]:
    """A command that leaves a mark each time it runs."""
    return ["count", str(counter)]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two commands of our own instead of the real ones.

    `count` leaves a mark in a file, `fail` fails.
    """
    (tmp_path / "own_commands.py").write_text(
        "import sys, pathlib\n"
        "def main():\n"
        "    path = pathlib.Path(sys.argv[1])\n"
        "    path.parent.mkdir(parents=True, exist_ok=True)\n"
        "    path.open('a').write('x')\n"
        "    print('{\"marks\": %d}' % len(path.read_text()))\n"
        "    sys.exit(1 if 'fail' in sys.argv else 0)\n"
    )
    monkeypatch.setitem(diary_module._MAIN, "count", "own_commands")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    return tmp_path


@pytest.mark.integration
def test_a_finished_stage_is_not_run_again(commands: Path) -> None:
    stage = Stage("one", counting(commands / "marks"))
    for _ in range(2):
        Diary(commands / "demo").run(stage)
    assert (commands / "marks").read_text() == "x"
    [entry] = json.loads((commands / "demo" / "stages.json").read_text())["stages"]
    assert entry["name"] == "one"
    assert entry["seconds"] > 0


@pytest.mark.integration
def test_a_failed_stage_starts_anew_without_its_leftovers(commands: Path) -> None:
    result = commands / "demo" / "result"
    with pytest.raises(UserError, match="continues there"):
        Diary(commands / "demo").run(Stage("one", [*counting(result / "marks"), "fail"], result))
    assert (result / "marks").read_text() == "x"
    Diary(commands / "demo").run(Stage("one", counting(result / "marks"), result))
    assert (result / "marks").read_text() == "x"


@pytest.mark.integration
def test_what_a_command_reports_as_json_is_kept(commands: Path) -> None:
    diary = Diary(commands / "demo")
    diary.run(Stage("one", [*counting(commands / "marks"), "--json"]))
    assert diary.entries["stages"][0]["output"] == {"marks": 1}


@pytest.mark.integration
def test_another_budget_in_the_same_folder_is_refused(commands: Path) -> None:
    Diary(commands / "demo").run(Stage("one", counting(commands / "marks")))
    with pytest.raises(UserError, match="another budget"):
        Diary(commands / "demo").run(Stage("one", [*counting(commands / "marks"), "more"]))


@pytest.mark.unit
def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="something else"):
        Diary(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.unit
def test_values_are_remembered_across_starts(tmp_path: Path) -> None:
    assert Diary(tmp_path / "demo").remember("steps", lambda: 7) == 7
    assert Diary(tmp_path / "demo").remember("steps", lambda: 8) == 7


@pytest.mark.unit
@pytest.mark.parametrize("budget", [SHORT, FULL])
def test_the_work_is_fixed_in_steps_and_measured_before_the_answers(
    budget: Budget, tmp_path: Path
) -> None:
    stages = pipeline.arms_and_scores(tmp_path, budget, "fp32")
    for stage in stages[:2]:
        assert f"train.max_steps={budget.arm_steps}" in stage.command
    assert [stage.name for stage in stages[2:]] == ["alignment", "attention", "evaluate"]


@pytest.mark.unit
def test_the_arms_differ_in_the_three_terms_alone(tmp_path: Path) -> None:
    lora, medalign, *_ = pipeline.arms_and_scores(tmp_path, SHORT, "bf16")
    recipes = [
        load_recipe(pipeline.RECIPE, stage.command[3:]).model_dump() for stage in (lora, medalign)
    ]
    different = {key for key in recipes[0] if recipes[0][key] != recipes[1][key]}
    assert different == {"output", "losses", "rotation", "targets"}
    # What `medalign evaluate --run` asks where no --data is given.
    assert {recipe["evaluation"]["data"] for recipe in recipes} == {
        str(tmp_path / "atlas" / "test.json")
    }
    assert recipes[0]["losses"]["alpha"] == recipes[0]["losses"]["beta"] == 0
    assert recipes[1]["losses"]["alpha"] > 0
    assert recipes[1]["losses"]["beta"] > 0
    assert {
        key
        for key in recipes[0]["losses"]
        if recipes[0]["losses"][key] != recipes[1]["losses"][key]
    } == {
        "alpha",
        "beta",
    }


@pytest.mark.unit
def test_every_printed_command_names_a_program_of_the_project(tmp_path: Path) -> None:
    stages = [
        *pipeline.preparation(tmp_path, SHORT, "fp32"),
        *pipeline.arms_and_scores(tmp_path, SHORT, "fp32"),
    ]
    assert {stage.command[0] for stage in stages} == {"cache", "student", "medalign"}


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_a_small_demo_from_end_to_end(tmp_path: Path) -> None:
    report = pipeline.run_demo(tmp_path / "demo", TINY)
    folder = report.parent
    for name in (
        "report.html",
        "scores.json",
        "store",
        "lora/adapter_model.safetensors",
        "medalign/rotation.safetensors",
        "alignment.json",
        "figures/attention.png",
    ):
        assert (folder / name).exists(), name
    scores = json.loads((folder / "scores.json").read_text())
    assert [row["adapter"] for row in scores["rows"]] == ["LoRA", "MEDALIGN"]
    assert all(
        len(score["interval"]) == 2 for row in scores["rows"] for score in row["scores"].values()
    )
    assert scores["comparisons"]
    assert {one["control"] for one in scores["controls"]["rows"]} == {"blank", "shuffled"}
    assert scores["question_only"]["known"] > 0
    [again] = [stage for stage in scores["demo"]["stages"] if stage["name"] == "cache again"]
    assert again["output"]["encoded"] == 0
    assert again["output"]["found"] > 300
    page = report.read_text()
    assert "Does the model look?" in page
    assert page.index("What distillation did") < page.index("Scores on held-out images")
    assert page.count("<svg") == 3  # losses, attention, similarity
    history = json.loads((folder / "medalign" / "trainer_state.json").read_text())["log_history"]
    assert {"loss_lm", "loss_vis", "loss_att"} <= history[0].keys()
