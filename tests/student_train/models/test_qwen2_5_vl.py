"""What is Qwen2.5-VL's own: places of images, its square, its published keys."""

import json
from pathlib import Path

import pytest
import torch

from shared.errors import UserError
from shared.recipe import ModelSection
from student_train.models import load_base
from student_train.models.outline import outline
from student_train.models.qwen_vl import flat_patches
from student_train.run.inspect import inspect_model
from tests.fixtures.families import QUESTIONS, Made, make, picture
from tests.fixtures.qwen2_5_vl_checkpoint import FULL, own_name, published_keys, write_qwen2_5_vl

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("qwen2_5_vl", tmp_path_factory.mktemp("qwen2_5_vl") / "model")


def test_without_token_types_transformers_model_is_another(made: Made) -> None:
    inputs = made.inputs()
    real, whole = inputs["attention_mask"].bool(), made.whole(inputs)
    bare = {name: one for name, one in whole.items() if name != "mm_token_type_ids"}
    with torch.no_grad():
        right, wrong = made.own(**whole).logits[real], made.own(**bare).logits[real]
        found = made.base.model(**inputs).logits[real]
    assert (right - wrong).abs().max() > 0.1
    torch.testing.assert_close(found, right, atol=1e-5, rtol=0)


def test_two_images_and_padding_have_the_places_of_its_own_processor(made: Made) -> None:
    images = [picture(number) for number in (1, 2)]
    inputs = made.base.encode([*QUESTIONS, "And?"], [images, images[:1], []])
    real = inputs["attention_mask"].bool()
    whole = made.whole(inputs)
    with torch.no_grad():
        expected = made.own(**whole).logits[real]
        found = made.base.model(**inputs).logits[real]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    places, shift = made.base.model.model.places_of(inputs["input_ids"], inputs["attention_mask"])
    own, delta = made.own.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=whole["mm_token_type_ids"],
        image_grid_thw=whole["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    assert torch.equal(places, own)
    assert torch.equal(shift, delta)
    assert shift.flatten().tolist() == [-24, -12, 0]  # 16 tokens of an image take the room of 4


def test_an_answer_after_another_prompts_is_its_own(made: Made) -> None:
    """What the model remembers of the last prompt must not move the next one's tokens."""
    asked = made.inputs(QUESTIONS[0])
    text = made.base.encode("Is a liver an organ?")
    options = {"max_new_tokens": 6, "do_sample": False}
    first = made.base.model.generate(**asked, **options)
    between = made.base.model.generate(**text, **options)
    assert torch.equal(made.base.model.generate(**asked, **options), first)
    fresh = load_base(str(made.folder)).model
    assert torch.equal(fresh.generate(**text, **options), between)


def test_squares_become_the_rows_of_its_own_processor() -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2VLImageProcessor

    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    tower = Qwen2_5_VLConfig().vision_config
    rows, _, _ = Qwen2VLImageProcessor().patchify(pixels, 14, 2, 2)
    assert torch.equal(flat_patches(pixels, tower), rows.flatten(0, 1))


def test_an_image_that_cannot_be_placed_is_refused(made: Made) -> None:
    from transformers import DynamicCache

    inputs, cache = made.inputs(QUESTIONS[0]), DynamicCache()
    with torch.no_grad():
        made.base.model(**inputs, past_key_values=cache, use_cache=True)
        longer = torch.ones(1, 2 * inputs["input_ids"].shape[1], dtype=torch.long)
        with pytest.raises(UserError, match=r"give image and prompt in one forward"):
            made.base.model(**{**inputs, "attention_mask": longer}, past_key_values=cache)
        ids = inputs["input_ids"].clone()
        ids[ids == made.base.image_token_id] = 5
        ids[0, 7] = made.base.image_token_id
        with pytest.raises(UserError, match=r"whole images of 16 tokens; a prompt has 1 image"):
            made.base.model(**{**inputs, "input_ids": ids})


def test_the_square_is_24x24_tokens_or_what_its_processor_allows(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FULL))
    for pixels, size in ((12845056, 672), (448 * 448, 448), (16384 * 28 * 28, 672)):
        file = tmp_path / "preprocessor_config.json"
        file.write_text(json.dumps({"min_pixels": 3136, "max_pixels": pixels}))
        found = outline(ModelSection(name=str(tmp_path)))
        assert (found.image_size, found.grid.rows) == (size, size // 28)
    shown = inspect_model(str(tmp_path))
    assert shown["images"] == "one square of 672 pixels"
    assert shown["grid"] == "24x24, 576 tokens an image"
    assert shown["layers"] == "28, so losses.layer is in 1..27"
    assert shown["width"] == 3584


def test_openais_tower_is_refused(tmp_path: Path) -> None:
    write_qwen2_5_vl(tmp_path)
    with pytest.raises(UserError, match=r"Qwen2\.5-VL brings its own tower"):
        load_base(ModelSection(name=str(tmp_path), vision_weights="openai"))


def test_every_published_key_of_the_7b_model_has_its_place() -> None:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(FULL))
    names = [own_name(key) for key in published_keys(FULL)]
    assert set(names) == set(model.state_dict())
    assert len(names) == 729
