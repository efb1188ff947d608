"""Which adapters a run has, and which decodings each answers under."""

import inspect
import json
from pathlib import Path

import pytest

from pipelines.decoding.methods import TABLE
from pipelines.evaluation.arms import find_arms, last_arm, plan_arms, preset_of
from pipelines.evaluation.commands import evaluate_command
from pipelines.evaluation.run import Options
from shared.errors import UserError
from shared.recipe.fields import EvaluationSection

pytestmark = pytest.mark.unit


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_adapters_inside_a_run_come_before_what_it_is_itself(tmp_path: Path) -> None:
    touch(tmp_path / "config.json")
    assert find_arms(tmp_path) == {"base": tmp_path}
    touch(tmp_path / "adapter_config.json")
    assert find_arms(tmp_path) == {"LoRA": tmp_path}
    touch(tmp_path / "rotation.safetensors")
    assert find_arms(tmp_path) == {"MEDALIGN": tmp_path}
    touch(tmp_path / "medalign" / "adapter_config.json")
    assert find_arms(tmp_path) == {"MEDALIGN": tmp_path / "medalign"}
    touch(tmp_path / "lora" / "adapter_config.json")
    assert list(find_arms(tmp_path)) == ["LoRA", "MEDALIGN"]
    assert last_arm(tmp_path) == tmp_path / "medalign"
    with pytest.raises(UserError, match="holds no adapter"):
        find_arms(tmp_path / "nowhere")


def rows(folders: dict[str, Path], methods: list[str]) -> list[str]:
    arms = plan_arms(folders, methods, "published", ())
    return [arm.row_name(decoding) for arm in arms for decoding in arm.decodings]


def test_the_full_table_decodes_medalign_by_beam_search_alone(tmp_path: Path) -> None:
    both = {"LoRA": tmp_path, "MEDALIGN": tmp_path}
    assert rows(both, ["all"]) == [*(f"LoRA + {name}" for name in TABLE), "MEDALIGN + beam"]
    assert rows({"MEDALIGN": tmp_path}, ["all"]) == [f"MEDALIGN + {name}" for name in TABLE]
    assert rows(both, ["greedy", "beam"]) == [
        "LoRA + greedy",
        "LoRA + beam",
        "MEDALIGN + greedy",
        "MEDALIGN + beam",
    ]


def test_the_authors_preset_is_that_of_the_first_adapters_template(tmp_path: Path) -> None:
    folders = {"one": tmp_path / "one", "two": tmp_path / "two"}
    assert preset_of("equal", folders) == "equal"
    assert preset_of("authors", folders) == "authors-llava-med"
    recipe = touch(tmp_path / "one" / "recipe.yaml")
    recipe.write_text("output: x\nmodel: {name: huatuogpt-vision-7b}\ndata: {train: x.json}\n")
    assert preset_of("authors", folders) == "authors-huatuo"


@pytest.mark.parametrize(
    ("config", "preset"),
    [
        ({"model_type": "llava_qwen2"}, "authors-huatuo"),
        ({"model_type": "llava_llama"}, "authors-huatuo"),
        ({"model_type": "llava", "prompt_template": "huatuo_v1"}, "authors-huatuo"),
        ({"model_type": "llava", "prompt_template": "vicuna_v1"}, "authors-llava-med"),
        ({"model_type": "llava_mistral"}, "authors-llava-med"),
    ],
)
@pytest.mark.parametrize("plain", [True, False])
def test_a_plain_folder_says_its_template_itself(
    tmp_path: Path, config: dict[str, str], preset: str, plain: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    adapter = tmp_path if plain else tmp_path / "lora"
    if not plain:
        recipe = touch(adapter / "recipe.yaml")
        recipe.write_text(f"output: x\nmodel: {{name: {tmp_path}}}\ndata: {{train: x.json}}\n")
    assert preset_of("authors", {"": adapter}) == preset


def test_an_arm_has_the_name_of_what_its_recipe_trained(tmp_path: Path) -> None:
    for name, losses, rotation in (
        ("lora", "{alpha: 1, beta: 0.1}", "none"),
        ("medalign", "{alpha: 0, beta: 0}", "full"),
    ):
        touch(tmp_path / name / "adapter_config.json")
        text = f"losses: {losses}\nrotation: {{kind: {rotation}}}\n"
        (tmp_path / name / "recipe.yaml").write_text(text)
    found = {"MEDALIGN without W": tmp_path / "lora", "W alone": tmp_path / "medalign"}
    assert find_arms(tmp_path) == found
    assert find_arms(tmp_path / "lora") == {"MEDALIGN without W": tmp_path / "lora"}
    shared = (tmp_path / "lora" / "recipe.yaml").read_text()
    (tmp_path / "medalign" / "recipe.yaml").write_text(shared)
    with pytest.raises(UserError, match=r"both adapters in .* are MEDALIGN without W"):
        find_arms(tmp_path)


def test_an_evaluation_from_python_has_the_defaults_of_the_command() -> None:
    recipe, own = EvaluationSection(), Options()
    for name in ("batch_size", "max_new_tokens", "seed"):
        assert getattr(own, name) == getattr(recipe, name)
    command = inspect.signature(evaluate_command).parameters
    for name in ("preset", "limit", "cluster", "device", "base", "dtype", "control_limit", "train"):
        assert getattr(own, name) == command[name].default


@pytest.mark.parametrize("asked", ["0,x", "-1", "1.5"])
def test_layers_that_are_no_numbers_are_one_line(tmp_path: Path, asked: str) -> None:
    touch(tmp_path / "adapter_config.json")
    data = touch(tmp_path / "test.json")
    with pytest.raises(UserError, match=rf"--save-layers '{asked}': write layer numbers, as in"):
        evaluate_command(run=tmp_path, data=data, decode="greedy", save_layers=asked)
