"""What is Gemma 3's own: image masks in both directions, sliding windows, its published keys."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.errors import UserError
from shared.recipe import ModelSection, make_recipe
from student_train.attention import observing
from student_train.models import load_base
from student_train.run.inspect import inspect_model, is_model
from student_train.student import make_student
from tests.fixtures.families import FAMILIES, QUESTIONS, Made, own_model
from tests.fixtures.gemma3_checkpoint import FULL, own_name, published_keys, write_gemma3
from tests.student_train.models.test_families import request_of

pytestmark = pytest.mark.unit
WINDOW = 30  # tokens: less than an image of 16 and its question


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("gemma3") / "model"
    write_gemma3(folder, WINDOW)
    family = FAMILIES["gemma3"]
    return Made(family, folder, load_base(str(folder)), own_model(family, folder))


def test_without_token_types_transformers_model_is_another(made: Made) -> None:
    inputs = made.inputs()
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        right = made.own(**made.whole(inputs)).logits[real]
        wrong = made.own(**inputs).logits[real]
        found = made.base.model(**inputs).logits[real]
    assert (right - wrong).abs().max() > 0.1
    torch.testing.assert_close(found, right, atol=1e-5, rtol=0)


def test_a_layer_that_does_not_see_the_whole_image_is_no_distillation_layer(
    made: Made, tmp_path: Path
) -> None:
    inputs = made.inputs()
    request = request_of(made, inputs)
    for layer in (2, 5):  # with a window of 30 tokens; with full attention
        base = load_base(str(made.folder))
        recipe = make_recipe({"losses": {"layer": layer}, "output": str(tmp_path)})
        student = make_student(base.model, base.image_token_id, recipe)
        student.model.eval()
        with torch.no_grad(), observing(student.channel, request) as seen:
            if layer == 2:
                with pytest.raises(UserError, match=r"only a part of its image.*sees 30 tokens"):
                    student.model(**inputs)
                continue
            student.model(**inputs)
        with torch.no_grad():
            output = made.own(**made.whole(inputs), output_attentions=True)
        rows = request.span_rows[1]
        weights = output.attentions[layer][1][:, rows][:, :, request.image_columns[1]]
        torch.testing.assert_close(
            seen.attention[layer][1], weights.mean((0, 1)), atol=1e-6, rtol=0
        )


def test_images_whose_mask_cannot_be_drawn_are_refused(made: Made) -> None:
    from transformers import DynamicCache

    inputs, cache = made.inputs(QUESTIONS[0]), DynamicCache()
    with torch.no_grad():
        made.base.model(**inputs, past_key_values=cache, use_cache=True)
        longer = torch.ones(1, 2 * inputs["input_ids"].shape[1], dtype=torch.long)
        with pytest.raises(UserError, match=r"image and prompt in one forward"):
            made.base.model(**{**inputs, "attention_mask": longer}, past_key_values=cache)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"attention": "flash_attention_2"}, "both directions.*attention=sdpa"),
        ({"vision_weights": "openai"}, "Gemma 3 brings its own tower"),
    ],
)
def test_what_would_be_another_model_is_refused(
    made: Made, section: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        load_base(ModelSection(name=str(made.folder), **section))


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_gemma3(tmp_path)
    for name, key, value, words in (
        ("config.json", "mm_tokens_per_image", 15, "15 tokens an image do not fit"),
        ("preprocessor_config.json", "size", {"height": 28, "width": 28}, "images of 28 pixels"),
        ("tokenizer.json", "post_processor", None, "does not begin a text with"),
    ):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(json.dumps(json.loads(before) | {key: value}))
        with pytest.raises(UserError, match=words):
            load_base(str(tmp_path))
        (tmp_path / name).write_text(before)
    # one layer's norm is missing
    index = tmp_path / "model.safetensors.index.json"
    import safetensors.torch as files

    shard = (
        tmp_path
        / json.loads(index.read_text())["weight_map"][
            "language_model.model.layers.3.self_attn.q_norm.weight"
        ]
    )
    state = files.load_file(shard)
    del state["language_model.model.layers.3.self_attn.q_norm.weight"]
    files.save_file(state, shard, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing.*layers\.3\.self_attn\.q_norm"):
        load_base(str(tmp_path))


def test_every_published_key_of_the_4b_model_has_its_place() -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(Gemma3Config.from_dict(FULL))
    names = {own_name(key) for key in published_keys(FULL)}
    # the head is the embedding's weight and stands in no file
    assert names == set(model.state_dict()) - {"lm_head.weight"}
    # as the published index of shards counts them
    assert len(names) == 883
    assert sum(one.numel() for one in model.parameters()) == 4_300_079_472


def test_inspect_shows_what_the_4b_model_sees(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FULL))
    assert is_model(str(tmp_path))
    assert is_model("medgemma-1.5-4b")
    found = inspect_model(str(tmp_path))
    assert found["images"] == "one square of 896 pixels"
    assert found["grid"] == "16x16, 256 tokens an image"
    assert found["width"] == 2560
    assert str(found["layers"]).startswith("34, so losses.layer is in 1..33; 5, 11, 17, 23, 29 see")
    assert "--grid 16x16" in str(found["targets"])
