"""Each family beside transformers' own class, processor and template."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from shared.recipe import make_recipe
from shared.records import Turn
from student_train.attention import Request, observing
from student_train.models import load_base
from student_train.models.pretrained import UNQUANTIZED
from student_train.models.prompts import IGNORED
from student_train.models.saving import save_base
from student_train.student import make_student
from tests.fixtures.families import FAMILIES, QUESTIONS, Made, make, own_model, picture

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module", params=list(FAMILIES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(request.param, tmp_path_factory.mktemp(request.param) / "model")


def chat(processor: Any, messages: list[dict[str, Any]], **options: Any) -> Any:
    return processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", **options
    )


def message(role: str, text: str, *images: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def test_prompt_and_pixels_are_those_of_its_own_processor(made: Made) -> None:
    from transformers import AutoProcessor

    family, base = made.family, made.base
    assert tuple(base.grid) == (family.grid, family.grid)
    assert (base.image_size, base.template.name) == (family.image_size, family.template)
    if not family.processor:
        pytest.skip("its layout has none; test_prompts.py and its own file hold the prompts")
    processor = AutoProcessor.from_pretrained(made.folder)
    small = [picture(number, 64, 64) for number in (1, 2)]  # which InternVL shows as one tile
    for images in (small[:1], small, []):
        question = [message("user", QUESTIONS[0], *images)]
        expected = chat(processor, question, add_generation_prompt=True)
        found = base.encode(QUESTIONS[0], images)
        assert found["input_ids"].tolist() == expected["input_ids"].tolist()
        if images:
            level = 1 / 255 / torch.tensor(base.image_processor.image_std)[:, None, None]
            pixels = made.whole(found)["pixel_values"] - expected["pixel_values"]
            apart = pixels.abs().div(level if pixels.ndim == 4 else level.min())
            assert apart.max() <= 2.001


def test_a_conversation_is_written_as_its_own_template_does(made: Made) -> None:
    from transformers import AutoProcessor

    if not made.family.processor:
        pytest.skip("its layout has none; test_prompts.py and its own file hold the prompts")
    turns = [
        Turn("human", "<image>\nIs it MRI?"),
        Turn("gpt", "Yes, it is."),
        Turn("human", "Which plane?"),
        Turn("gpt", "Axial."),
    ]
    encoded = made.base.encode_conversation(turns, None, "error")
    messages = [
        message("user", "Is it MRI?", picture(0, 64, 64)),
        message("assistant", "Yes, it is."),
        message("user", "Which plane?"),
        message("assistant", "Axial."),
    ]
    expected = chat(AutoProcessor.from_pretrained(made.folder), messages)["input_ids"][0].tolist()
    # theirs ends with a newline behind the last end token
    assert expected[: len(encoded.input_ids)] == encoded.input_ids
    assert len(expected) <= len(encoded.input_ids) + 1
    learned = [token for token in encoded.labels if token != IGNORED]
    end = made.base.template.end_token
    assert made.base.tokenizer.decode(learned) == f"Yes, it is.{end}Axial.{end}"


def test_a_system_turn_is_written_as_its_own_template_does(made: Made) -> None:
    from transformers import AutoProcessor

    if not made.family.processor:
        pytest.skip("its layout has none; test_prompts.py and its own file hold the prompts")
    processor = AutoProcessor.from_pretrained(made.folder)
    system, shown = "Be brief: a radiologist reads you.", picture(0, 64, 64)
    turns = [Turn("human", "<image>\nIs it MRI?"), Turn("gpt", "Yes, it is.")]
    turns += [Turn("human", "Which plane?"), Turn("gpt", "Axial.")]
    messages = [
        message("system", system),
        message("user", "Is it MRI?", shown),
        message("assistant", "Yes, it is."),
        message("user", "Which plane?"),
        message("assistant", "Axial."),
    ]
    encoded = made.base.encode_conversation(turns, None, "error", system=f" {system}\n")
    expected = chat(processor, messages)["input_ids"][0].tolist()
    assert expected[: len(encoded.input_ids)] == encoded.input_ids
    assert len(expected) <= len(encoded.input_ids) + 1
    learned = [token for token in encoded.labels if token != IGNORED]
    end = made.base.template.end_token
    assert made.base.tokenizer.decode(learned) == f"Yes, it is.{end}Axial.{end}"
    for asked, images in ((messages[:2], [shown]), ([messages[0], messages[3]], [])):
        question = asked[1]["content"][-1]["text"]
        found = made.base.encode(question, images, system=system)
        expected = chat(processor, asked, add_generation_prompt=True)
        assert found["input_ids"].tolist() == expected["input_ids"].tolist()


def test_without_training_the_logits_are_the_models_own(made: Made, tmp_path: Path) -> None:
    inputs = made.inputs()
    with torch.no_grad():
        expected = made.own(**made.whole(inputs)).logits
    recipe = make_recipe({"losses": {"layer": 2}, "lora": {"r": 4}, "output": str(tmp_path)})
    base = load_base(str(made.folder))
    student = make_student(base.model, base.image_token_id, recipe)
    assert not cast(Any, base.model).rotation["2"].weight.any()
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        found = student.model.eval()(**inputs).logits
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=0)


def request_of(made: Made, inputs: dict[str, torch.Tensor]) -> Request:
    """All rows behind the images of a batch padded on the left."""
    shown = inputs["input_ids"] == made.base.image_token_id
    first, count = shown.int().argmax(1), made.base.image_tokens
    columns = first[:, None] + torch.arange(count)
    length = inputs["input_ids"].shape[1]
    spans = [list(range(int(start) + count, length)) for start in first]
    widest = max(map(len, spans))
    rows = torch.tensor([span + span[:1] * (widest - len(span)) for span in spans])
    numbers = torch.arange(len(spans))
    return Request(numbers, columns, numbers, rows, torch.tensor([len(span) for span in spans]))


def test_the_tap_reads_what_its_eager_attention_has(made: Made, tmp_path: Path) -> None:
    inputs = made.inputs()
    layers = list(range(made.family.first, made.family.layers))
    recipe = make_recipe({"losses": {"layer": layers}, "lora": {"r": 4}, "output": str(tmp_path)})
    base = load_base(str(made.folder))
    student = make_student(base.model, base.image_token_id, recipe)
    request = request_of(made, inputs)
    with torch.no_grad(), observing(student.channel, request) as seen:
        student.model.eval()(**inputs)
    entered: dict[int, torch.Tensor] = {}
    handles = [
        made.own.get_decoder()
        .layers[layer]
        .register_forward_pre_hook(
            lambda module, args, layer=layer: entered.__setitem__(layer, args[0])
        )
        for layer in layers
    ]
    with torch.no_grad():
        output = made.own(**made.whole(inputs), output_attentions=True)
    for handle in handles:
        handle.remove()
    for layer in layers:
        for row in range(2):
            rows = request.span_rows[row][: int(request.span_lengths[row])]
            weights = output.attentions[layer][row][:, rows][:, :, request.image_columns[row]]
            expected = weights.mean((0, 1))
            torch.testing.assert_close(seen.attention[layer][row], expected, atol=1e-6, rtol=1e-4)
            states = entered[layer][row][request.image_columns[row]]
            torch.testing.assert_close(seen.tokens[layer][row], states, atol=1e-5, rtol=1e-4)


def test_with_w_an_answer_from_the_cache_is_one_without(made: Made, tmp_path: Path) -> None:
    recipe = make_recipe({"losses": {"layer": 2}, "lora": {"r": 4}, "output": str(tmp_path)})
    base = load_base(str(made.folder))
    student = make_student(base.model, base.image_token_id, recipe)
    with torch.no_grad():
        cast(Any, base.model).rotation["2"].weight.normal_(
            std=0.3, generator=torch.Generator().manual_seed(1)
        )
    model, inputs = student.model.eval(), made.inputs(QUESTIONS[1])
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    ids = inputs["input_ids"]
    with torch.no_grad():
        plain = made.own(**made.whole(inputs)).logits
        assert not torch.allclose(model(**inputs).logits, plain, atol=1e-2)
        for _ in range(tokens.shape[1] - ids.shape[1]):
            whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            following = model(**whole, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, following], dim=1)
    assert ids.tolist() == tokens.tolist()


def test_a_saved_folder_is_transformers_own(made: Made, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    save_base(made.base, tmp_path)
    inputs = made.inputs()
    with torch.no_grad():
        expected = made.own(**made.whole(inputs)).logits
        found = own_model(made.family, tmp_path)(**made.whole(inputs)).logits
        again = load_base(str(tmp_path)).model(**inputs).logits
    assert torch.equal(found, expected)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(again[real], expected[real], atol=1e-5, rtol=0)
    if made.family.template == "smolvlm":
        return  # whose own processor cuts tiles: the folder holds none
    processor = AutoProcessor.from_pretrained(tmp_path)
    question = [message("user", QUESTIONS[0], picture())]
    written = chat(processor, question, add_generation_prompt=True)
    own = made.base.encode(QUESTIONS[0], [picture()])
    assert written["input_ids"].tolist() == own["input_ids"].tolist()


def test_qlora_quantizes_the_layers_of_the_decoder_alone(made: Made) -> None:
    """By transformers' own reading of the names that are held back; quantising needs a GPU."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    model = made.base.model
    names = {name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    decoder = model.get_decoder()
    [place] = [name for name, one in model.named_modules() if one is decoder]
    layers = {name for name in names if name.startswith(f"{place}.layers.")}
    assert len(layers) == 7 * made.family.layers
    assert {name for name in names if should_convert_module(name, list(UNQUANTIZED))} == layers
