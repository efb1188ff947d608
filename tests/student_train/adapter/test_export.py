"""An exported model: with W other software fails on it, without W it is a plain model."""

from pathlib import Path
from typing import Any

import pytest
import torch

import student_train
from shared.errors import UserError
from student_train.adapter.export import export
from student_train.models import load_base
from student_train.run.train import train
from tests.fixtures.student_runs import recipe, write_run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_run(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def exported(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Make an adapter with W or without, and its export."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            settings = {"train__max_steps": 2, "train__learning_rate": 0.05, "rotation__kind": kind}
            run = train(recipe(values, output=str(folder / "run"), **settings))
            made[kind] = run, export(run, folder / "merged")
        return made[kind]

    return make


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found


def question(processor: Any, values: dict[str, Any]) -> dict[str, torch.Tensor]:
    image = next(Path(values["data"]["image_root"]).glob("*.png"))
    encoded: dict[str, torch.Tensor] = processor.encode("Is it MRI?", [image])
    return encoded


def test_with_a_rotation_other_software_fails(
    values: dict[str, Any], exported: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText, LlavaForConditionalGeneration

    run, merged = exported("full")
    for load in (AutoConfig, AutoModelForImageTextToText, LlavaForConditionalGeneration):
        with pytest.raises(Exception, match="medalign"):
            load.from_pretrained(merged)
    with pytest.raises(UserError, match="would lose W"):
        load_base(str(merged))
    adapted, processor = student_train.load(run)
    caplog.clear()
    whole, other = student_train.load(merged)
    assert "model of type" not in caplog.text
    inputs = question(processor, values)
    assert question(other, values)["input_ids"].tolist() == inputs["input_ids"].tolist()
    torch.testing.assert_close(logits(whole, inputs), logits(adapted, inputs), atol=1e-4, rtol=0)


def test_a_lost_rotation_is_an_error(exported: Any, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(exported("full")[1], tmp_path / "copy")
    (copy / "rotation.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no rotation\.safetensors"):
        student_train.load(copy)
    (copy / "recipe.yaml").unlink()
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        student_train.load(copy)


def test_without_a_rotation_it_is_a_plain_model(values: dict[str, Any], exported: Any) -> None:
    from transformers import AutoModelForImageTextToText

    run, merged = exported("none")
    adapted, processor = student_train.load(run)
    inputs = question(processor, values)
    plain = AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(plain, inputs), logits(adapted, inputs), atol=1e-4, rtol=0)
    load_base(str(merged))  # and a base for more training
