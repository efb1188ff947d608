"""Base weights keep the type they are stored in, unless another is asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import student_train
from pipelines.cli import app
from pipelines.evaluation.loading import load_student
from shared.vocabulary import WeightsDtype
from student_train.adapter.export import export
from student_train.models import load_base
from student_train.models.dtype import dtype_named, own_dtype
from student_train.run.train import train
from tests.fixtures.student_checkpoints import llava_hf
from tests.fixtures.student_runs import recipe, write_run

pytestmark = pytest.mark.integration


def stored_in(folder: Path, dtype: torch.dtype, but: str | None = None) -> Path:
    """Rewrite the weights of a folder in another type, all but those whose name holds `but`."""
    file = folder / "model.safetensors"
    weights = {
        name: tensor if but and but in name else tensor.to(dtype)
        for name, tensor in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def test_most_of_the_weights_decide_not_the_config(tmp_path: Path) -> None:
    llava_hf(tmp_path)
    assert own_dtype(tmp_path) == torch.float32
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    assert load_base(str(tmp_path)).model.dtype == torch.float32
    stored_in(tmp_path, torch.bfloat16, but="norm")
    assert load_base(str(tmp_path)).model.dtype == torch.bfloat16
    assert load_base(str(tmp_path), torch.float32).model.dtype == torch.float32
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert own_dtype(tmp_path) == torch.bfloat16


def test_a_type_that_nothing_computes_in_becomes_float32(tmp_path: Path) -> None:
    llava_hf(tmp_path)
    assert own_dtype(stored_in(tmp_path, torch.float64)) == torch.float32


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return settings of a run whose base is stored in bfloat16."""
    values = write_run(tmp_path_factory.mktemp("half"))
    stored_in(Path(values["model"]["name"]), torch.bfloat16)
    return values


ADAPTERS = {"lora": {}, "rslora": {"lora__rslora": True}, "dora": {"lora__dora": True}}


@pytest.fixture(scope="module", params=ADAPTERS)
def run(
    request: pytest.FixtureRequest,
    values: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return an adapter of two steps on the bfloat16 base."""
    settings = {"train__max_steps": 2, "train__learning_rate": 0.05, **ADAPTERS[request.param]}
    return train(recipe(values, output=str(tmp_path_factory.mktemp("run") / "run"), **settings))


def merged_exactly(adapter: Path, base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return merged weights in float64: W + s B A, under DoRA each row at its magnitude.

    Hu et al., 2021; Kalajdzievski, 2023 (s = alpha / sqrt r); Liu et al., 2024.
    """
    config = json.loads((adapter / "adapter_config.json").read_text())
    rank = config["r"]
    scale = config["lora_alpha"] / (rank**0.5 if config["use_rslora"] else rank)
    found = load_file(adapter / "adapter_model.safetensors")
    merged = {}
    for name in found:
        if not name.endswith("lora_A.weight"):
            continue
        stem = name.removesuffix("lora_A.weight")
        down, up = found[name].double(), found[stem + "lora_B.weight"].double()
        layer = stem.partition("language_model.")[2]  # the two files name what is above otherwise
        place = next(one for one in base if one.endswith(layer.removeprefix("model.") + "weight"))
        whole = base[place].double() + scale * up @ down
        if stem + "lora_magnitude_vector" in found:
            length = found[stem + "lora_magnitude_vector"].double()
            whole *= (length / whole.norm(dim=1))[:, None]
        merged[place] = whole
    return merged


@pytest.mark.parametrize("word", ["auto", "fp32"])
def test_merged_weights_are_rounded_once(
    run: Path, values: dict[str, Any], tmp_path: Path, word: WeightsDtype
) -> None:
    export(run, tmp_path / "merged", dtype=dtype_named(word))
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    exact = merged_exactly(run, load_file(Path(values["model"]["name"]) / "model.safetensors"))
    assert len(exact) >= 7  # every linear layer of a decoder block
    # Half a unit of bfloat16's 8 or float32's 24 binary digits; float32 sums beside it.
    digits = {"auto": 2.0**-8, "fp32": 2.0**-24}[word]
    for place, wanted in exact.items():
        found = stored[place]
        assert found.dtype == (torch.bfloat16 if word == "auto" else torch.float32)
        bound = digits * wanted.abs() + 2.0**-19 * wanted.abs().max()
        assert bool(((found.double() - wanted).abs() <= bound).all()), place


def test_a_half_precision_base_is_not_merged_for_answers(run: Path) -> None:
    half = load_student(run)
    assert half.model.dtype == torch.bfloat16
    layers = [one for one in half.model.modules() if hasattr(one, "merged_adapters")]
    assert layers
    assert not any(getattr(one, "merged_adapters") for one in layers)  # noqa: B009
    whole = load_student(run, dtype="fp32")
    assert whole.model.dtype == torch.float32
    adapted, _ = student_train.load(run)
    small = [one for name, one in adapted.named_parameters() if "lora" in name]
    assert {one.dtype for one in small} == {torch.float32}


@pytest.mark.parametrize(("word", "dtype"), [("auto", "bfloat16"), ("fp32", "float32")])
def test_by_command(
    run: Path, values: dict[str, Any], tmp_path: Path, word: str, dtype: str
) -> None:
    image = next(Path(values["data"]["image_root"]).glob("*.png"))
    common = ["--run", str(run), "--dtype", word]
    asked = ["generate", *common, "--image", str(image), "--question", "Is it MRI?"]
    said = CliRunner().invoke(app, [*asked, "--max-new-tokens", "2", "--decode", "greedy"])
    assert said.exit_code == 0, said.output
    answered = ["evaluate", *common, "--data", values["data"]["train"], "--limit", "4"]
    where = ["--image-root", values["data"]["image_root"], "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(app, [*answered, *where, "--max-new-tokens", "2"])
    assert said.exit_code == 0, said.output
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {row["dtype"] for row in result["rows"]} == {dtype}
