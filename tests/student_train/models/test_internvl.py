"""What is InternVL's own: its head, its decoders, its tiles, its published keys."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import UserError
from shared.recipe import ModelSection, make_recipe
from student_train.attention import observing
from student_train.models import load_base
from student_train.models.saving import save_base
from student_train.run.inspect import inspect_model
from student_train.student import make_student
from tests.fixtures.families import FAMILIES, Made, own_model, picture
from tests.fixtures.internvl_checkpoint import FULL, own_name, published_keys, write_internvl
from tests.student_train.models.test_families import request_of

pytestmark = pytest.mark.unit
HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


def test_the_head_of_the_file_is_the_models(tmp_path: Path) -> None:
    """The published config.json says nothing of the head, and the class would tie it."""
    weights = write_internvl(tmp_path)
    assert "tie_word_embeddings" not in json.loads((tmp_path / "config.json").read_text())
    state = load_base(str(tmp_path)).model.state_dict()
    assert torch.equal(state["lm_head.weight"], weights[HEAD])
    assert torch.equal(state["model.language_model.embed_tokens.weight"], weights[EMBEDDING])
    # a tune of the 1B model, whose head is the embedding and stands in no file
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shard = tmp_path / index["weight_map"].pop(HEAD)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(
        {name: one for name, one in load_file(shard).items() if name != HEAD},
        shard,
        metadata={"format": "pt"},
    )
    state = load_base(str(tmp_path)).model.state_dict()
    assert torch.equal(state["lm_head.weight"], weights[EMBEDDING])


def test_the_decoder_may_be_qwen3_with_normed_queries(tmp_path: Path) -> None:
    write_internvl(tmp_path / "model", "qwen3")
    family = FAMILIES["internvl"]
    folder = tmp_path / "model"
    made = Made(family, folder, load_base(str(folder)), own_model(family, folder))
    inputs = made.inputs()
    recipe = make_recipe({"losses": {"layer": 3}, "output": str(tmp_path)})
    student = make_student(made.base.model, made.base.image_token_id, recipe)
    request = request_of(made, inputs)
    with torch.no_grad(), observing(student.channel, request) as seen:
        found = student.model.eval()(**inputs).logits
    with torch.no_grad():
        output = made.own(**inputs, output_attentions=True)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[real], output.logits[real], atol=1e-5, rtol=0)
    rows = request.span_rows[1]
    weights = output.attentions[3][1][:, rows][:, :, request.image_columns[1]].mean((0, 1))
    torch.testing.assert_close(seen.attention[3][1], weights, atol=1e-6, rtol=0)


def test_an_image_token_stands_for_its_own_four_patches(tmp_path: Path) -> None:
    """Row by row: what changes in one corner of the image moves that corner's token most."""
    write_internvl(tmp_path)
    base = load_base(str(tmp_path))
    pixels = torch.zeros(1, 3, 56, 56)
    changed = pixels.clone()
    changed[:, :, 14:28, 42:56] = 3.0  # token (1, 3) of 4x4
    with torch.no_grad():
        before, after = (
            base.model.model.get_image_features(one, return_dict=True).pooler_output[0]
            for one in (pixels, changed)
        )
    assert int((after - before).norm(dim=1).argmax()) == 1 * 4 + 3


def test_a_saved_folder_shows_one_tile(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    write_internvl(tmp_path / "model")
    base = load_base(str(tmp_path / "model"))
    save_base(base, tmp_path / "saved")
    large = picture(3, 200, 200)  # the published processor makes tiles and a thumbnail of it
    tiles = [
        AutoProcessor.from_pretrained(tmp_path / name)(
            images=[large], text="<IMG_CONTEXT>", return_tensors="pt"
        )["pixel_values"]
        for name in ("model", "saved")
    ]
    assert [len(one) for one in tiles] == [10, 1]
    level = 1 / 255 / torch.tensor(base.image_processor.image_std)[:, None, None]
    own = base.encode("?", [large])["pixel_values"]
    assert (tiles[1] - own).abs().div(level).max() <= 2.001


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("config.json", "image_seq_length", 64, "4x4 tokens, but its config.json says.*64 tokens"),
        ("preprocessor_config.json", "size", {"height": 28, "width": 28}, "images of 28 pixels"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, key: str, value: Any, words: str
) -> None:
    write_internvl(tmp_path)
    file = tmp_path / name
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(UserError, match=words):
        load_base(str(tmp_path))


def test_openais_tower_is_refused(tmp_path: Path) -> None:
    write_internvl(tmp_path)
    with pytest.raises(UserError, match="InternVL brings its own tower"):
        load_base(ModelSection(name=str(tmp_path), vision_weights="openai"))


def test_every_published_key_of_the_8b_model_has_its_place() -> None:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    with torch.device("meta"):
        model = InternVLForConditionalGeneration(InternVLConfig.from_dict(FULL))
    assert {own_name(key) for key in published_keys(FULL)} == set(model.state_dict())


def test_inspect_shows_what_the_8b_model_sees(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FULL))
    found = inspect_model(str(tmp_path))
    assert found["images"] == "one square of 448 pixels"
    assert found["grid"] == "16x16, 256 tokens an image"
    assert found["layers"] == "28, so losses.layer is in 1..27"
    assert found["width"] == 3584
