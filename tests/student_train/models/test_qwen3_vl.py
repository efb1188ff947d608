"""What is Qwen3-VL's own: DeepStack above and below the distillation layer, its published keys."""

import json
from pathlib import Path

import pytest
import torch

from shared.errors import UserError
from shared.recipe import ModelSection, make_recipe
from student_train.models import load_base
from student_train.run.inspect import inspect_model
from student_train.student import make_student
from tests.fixtures.families import Made, make
from tests.fixtures.qwen3_vl_checkpoint import FULL, published_keys, write_qwen3_vl

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("qwen3_vl", tmp_path_factory.mktemp("qwen3_vl") / "model")


def test_a_layer_below_deepstack_is_no_distillation_layer(made: Made, tmp_path: Path) -> None:
    base = load_base(str(made.folder))
    for layer in (1, [3, 1]):
        recipe = make_recipe({"losses": {"layer": layer}, "output": str(tmp_path)})
        with pytest.raises(UserError, match=r"losses.layer=1: behind layers 0..1 .*take l in 2..4"):
            make_student(base.model, base.image_token_id, recipe)


def test_features_of_before_give_the_logits_of_the_image(made: Made) -> None:
    """Of DeepStack's layers as well: without them the logits are others."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    inputs = made.inputs()
    with torch.no_grad():
        expected = made.own(**made.whole(inputs)).logits
        whole = made.base.model.model.whole_features(inputs.pop("pixel_values"))
        assert [one.shape for one in whole] == [(16, 32 * 3)] * 2
        for kept in (1.0, 0.0):
            given = [torch.cat([one[:, :32], kept * one[:, 32:]], dim=1) for one in whole]
            images = {"image": BaseModelOutputWithPooling(pooler_output=given)}
            found = made.base.model(**inputs, mm_encoder_outputs=images).logits
            apart = (found - expected)[inputs["attention_mask"].bool()].abs().max()
            assert (apart < 1e-5) == (kept == 1.0)


def test_openais_tower_is_refused(tmp_path: Path) -> None:
    write_qwen3_vl(tmp_path)
    with pytest.raises(UserError, match="Qwen3-VL brings its own tower"):
        load_base(ModelSection(name=str(tmp_path), vision_weights="openai"))


def test_every_published_key_of_the_8b_model_has_its_place() -> None:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(
            Qwen3VLConfig.from_dict(json.loads(json.dumps(FULL)))
        )
    names = list(published_keys(FULL))
    assert set(names) == set(model.state_dict())
    assert len(names) == 750


def test_inspect_shows_what_the_8b_model_sees(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FULL))
    found = inspect_model(str(tmp_path))
    assert found["images"] == "one square of 768 pixels"
    assert found["grid"] == "24x24, 576 tokens an image"
    assert found["layers"] == "36, so losses.layer is in 3..35"
    assert found["width"] == 4096
