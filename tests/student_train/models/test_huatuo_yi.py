"""HuatuoGPT-Vision-34B by name: its tokenizer as it stands, its sizes, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from shared.errors import UserError
from shared.recipe import ModelSection
from student_train.models import load_base
from student_train.models.prompts import encode_prompt
from student_train.models.templates import TEMPLATES
from student_train.run.inspect import inspect_model, is_model
from tests.fixtures.yi_checkpoint import SMALL_YI, YI, write_yi, yi_config, yi_tokenizer

pytestmark = pytest.mark.unit
NAME = "huatuogpt-vision-34b"


def test_the_name_loads_the_layout_with_the_ids_of_its_own_tokenizer(tmp_path: Path) -> None:
    write_yi(tmp_path)
    base = load_base(ModelSection(name=NAME, path=str(tmp_path)))
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    template, question = TEMPLATES["huatuo_v1"], "this is   it,\n3\u00a0cm of \u80ba?"
    assert base.template == template
    encoded = encode_prompt(question, template, base.tokenizer, 16, base.image_token_id, images=1)
    written = template.start + template.human.format("<image>\n" + question) + template.opening
    before, after = written.split("<image>")
    image = SMALL_YI.vocabulary  # the first id behind the tokenizer's
    assert base.image_token_id == image
    expected = [*own.encode(before).ids, *[image] * 16, *own.encode(after).ids]
    assert encoded.input_ids == expected
    assert expected[0] != own.token_to_id("<|startoftext|>")  # Yi puts no token in front
    model: Any = base.model
    assert len(model.lm_head.weight) == 384  # 362 words and the image token, in steps of 64
    assert model.generation_config.eos_token_id == own.token_to_id("<|endoftext|>")


def test_another_end_of_answers_is_refused_and_the_way_out_works(tmp_path: Path) -> None:
    write_yi(tmp_path)
    yi_tokenizer(tmp_path, end="<|im_end|>")
    with pytest.raises(UserError, match=r"ends a text with <\|im_end\|>.*model.template=huatuo_v1"):
        load_base(ModelSection(name=NAME, path=str(tmp_path)))
    base = load_base(ModelSection(name=NAME, path=str(tmp_path), template="huatuo_v1"))
    assert base.template.name == "huatuo_v1"


def test_a_llama_of_this_layout_names_its_template(tmp_path: Path) -> None:
    """Such as LLaVA-1.6 with Vicuna, whose tokenizer has no `<|endoftext|>`."""
    write_yi(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace("<|endoftext|>", "</s>"))
    with pytest.raises(UserError, match=r"no token <\|endoftext\|>.*set model.template"):
        load_base(str(tmp_path))
    assert load_base(ModelSection(name=str(tmp_path), template="vicuna_v1")).grid == (4, 4)


def test_openais_tower_is_refused(tmp_path: Path) -> None:
    write_yi(tmp_path)
    with pytest.raises(UserError, match="HuatuoGPT-Vision brings its own tower"):
        load_base(ModelSection(name=str(tmp_path), vision_weights="openai"))


def test_inspect_shows_what_the_34b_model_sees(tmp_path: Path) -> None:
    config = yi_config(YI, "openai/clip-vit-large-patch14-336")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert is_model(NAME)
    found = inspect_model(str(tmp_path))
    assert found["images"] == "one square of 336 pixels"
    assert found["grid"] == "24x24, 576 tokens an image"
    assert found["layers"] == "60, so losses.layer is in 1..59"
    assert found["width"] == 7168
