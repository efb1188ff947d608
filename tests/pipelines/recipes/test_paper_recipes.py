"""The shipped recipes: one for each model and data set, valid, with the authors' values."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipelines.datasets.registry import SETS
from pipelines.recipes.commands import app as recipes_app
from pipelines.recipes.commands import copy_command, list_command, show_command
from shared.errors import UserError
from shared.recipe import load_recipe

FOLDER = Path(__file__).resolve().parents[3] / "pipelines" / "recipes"
MODELS = {"llava-med": "llava-med-1.5", "huatuo": "huatuogpt-vision-7b"}
EPOCHS = {
    "slake": 6,
    "vqa-rad": 9,
    "path-vqa": 3,
    "iu-xray-vqa": 6,
    "omnimedvqa": 3,
    "iu-xray-report": 12,
    "mimic-cxr-report": 12,
}
WEIGHTS = {("llava-med", "vqa-rad"): (0.08, 0.06)}
LAYERS = {("huatuo", "slake"): 16}

pytestmark = pytest.mark.unit


def test_each_model_and_set_has_its_recipe() -> None:
    paper = {f"{model}-{name}" for model in MODELS for name in SETS}
    assert {path.stem for path in FOLDER.glob("*.yaml")} >= paper
    assert set(EPOCHS) == set(SETS)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    load_recipe(path)


@pytest.mark.parametrize("name", sorted(EPOCHS))
@pytest.mark.parametrize("model", sorted(MODELS))
def test_recipe_holds_the_authors_values(model: str, name: str) -> None:
    recipe = load_recipe(FOLDER / f"{model}-{name}.yaml")
    assert recipe.model.name == MODELS[model]
    assert recipe.model.vision_weights == ("openai" if model == "llava-med" else "checkpoint")
    assert recipe.model.template == ("vicuna_v1" if model == "llava-med" else "huatuo_v1")
    assert recipe.train.epochs == EPOCHS[name]
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout) == (
        64 if "report" in name else 32,
        16,
        0.05,
    )
    assert (recipe.losses.alpha, recipe.losses.beta) == WEIGHTS.get((model, name), (1.0, 0.03))
    assert recipe.losses.attention_normalization == "l2"
    assert recipe.losses.layers == (LAYERS.get((model, name), 20),)
    assert recipe.train.batch_size * recipe.train.accumulation * 4 == 32
    assert (recipe.train.learning_rate, recipe.train.schedule, recipe.train.warmup_ratio) == (
        2e-4,
        "cosine",
        0.03,
    )
    assert (recipe.train.precision, recipe.train.seed, recipe.data.max_length) == ("bf16", 4, 1024)
    assert recipe.targets.teacher == "unimed-l"
    assert recipe.evaluation.methods == ["beam"]
    assert recipe.evaluation.max_new_tokens == (1024 if model == "llava-med" else 128)
    assert recipe.data.train == f"data/{name}/train.json"
    assert recipe.evaluation.data == f"data/{name}/test.json"
    assert recipe.data.image_root == recipe.evaluation.image_root
    assert "#" not in (recipe.data.image_root or "")


def test_shipped_recipes_are_listed_and_printed_whole(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    list_command()
    listed = capsys.readouterr().out
    assert all(path.stem in listed for path in FOLDER.glob("*.yaml"))
    for path in FOLDER.glob("*.yaml"):
        show_command(path.stem)
        copy = tmp_path / path.name  # beside no base.yaml
        copy.write_text(capsys.readouterr().out)
        assert load_recipe(copy) == load_recipe(path)
    with pytest.raises(UserError, match="the shipped ones are base, demo, huatuo-"):
        show_command("nowhere")


def test_a_shipped_recipe_is_copied_to_a_new_file_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy_command("demo")
    copy_command("demo.yaml", tmp_path / "mine.yaml")
    assert capsys.readouterr().out.split(":")[0] == "demo.yaml"
    for name in ("demo.yaml", "mine.yaml"):
        assert load_recipe(tmp_path / name) == load_recipe(FOLDER / "demo.yaml")
    (tmp_path / "mine.yaml").write_text("output: kept\n")
    for to, said in ((Path("mine.yaml"), "mine.yaml exists"), (Path("no/a.yaml"), "no folder no")):
        with pytest.raises(UserError, match=said):
            copy_command("demo", to)
    assert (tmp_path / "mine.yaml").read_text() == "output: kept\n"


def test_the_list_needs_no_word_and_keys_and_schema_are_there() -> None:
    runner = CliRunner()
    bare, said = (runner.invoke(recipes_app, words).output for words in ([], ["list"]))
    assert bare == said
    assert "demo" in bare
    assert json.loads(runner.invoke(recipes_app, ["--schema"]).output)["properties"]["losses"]
    assert "losses.layer" in runner.invoke(recipes_app, ["--keys"]).output


def test_a_paper_recipe_says_only_what_is_its_own() -> None:
    """A value that equals the base's would hide which values are a run's own."""
    base = yaml.safe_load((FOLDER / "base.yaml").read_text())
    for path in FOLDER.glob("*-*.yaml"):
        values = yaml.safe_load(path.read_text())
        assert values["extends"] == "base.yaml"
        for section, keys in values.items():
            for key, value in keys.items() if isinstance(keys, dict) else []:
                assert base.get(section, {}).get(key) != value, f"{path.name}: {section}.{key}"
