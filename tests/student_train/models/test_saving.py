"""A saved model under transformers' own processor: the same ids, pixels and logits as here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shared.errors import UserError
from shared.imaging.squares import image_reader
from shared.recipe import ModelSection
from shared.records import Turn
from student_train.models import load_base
from student_train.models.saving import save_base
from tests.fixtures.student_checkpoints import huatuo_original, llava_med_original

pytestmark = pytest.mark.unit

FAMILIES = {
    "vicuna_v1": llava_med_original,
    "mistral_instruct": llava_med_original,
    "huatuo_v1": huatuo_original,
    "huatuo": huatuo_original,
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A student, the folder it was saved to, and transformers' processor of that folder."""
    from transformers import AutoProcessor

    folder = tmp_path_factory.mktemp(request.param)
    FAMILIES[request.param](folder / "published")
    base = load_base(ModelSection(name=str(folder / "published"), template=request.param))
    save_base(base, folder / "saved")
    return base, folder / "saved", AutoProcessor.from_pretrained(folder / "saved")


def picture(width: int, height: int) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width * 4, height * 4), Image.Resampling.BICUBIC)


def message(role: str, text: str, *images: Image.Image) -> dict[str, Any]:
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def ids_of(processor: Any, messages: list[dict[str, Any]], **options: Any) -> Any:
    return processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", **options
    )


@pytest.mark.parametrize("images", [0, 1, 2])
def test_a_question_has_the_same_ids(saved: Any, images: int) -> None:
    base, _, processor = saved
    pictures = [picture(30, 20)] * images
    for text in ("What is  shown here?", "  FINDINGS:\n 1. none "):
        own = base.encode(text, pictures)
        found = ids_of(processor, [message("user", text, *pictures)], add_generation_prompt=True)
        assert found["input_ids"].tolist() == own["input_ids"].tolist()


def test_a_conversation_has_the_same_ids(saved: Any) -> None:
    base, _, processor = saved
    texts = ("Is it MRI?", "Yes, it is.", "Which plane?", "Axial.")
    turns = [
        Turn("gpt" if number % 2 else "human", ("" if number else "<image>\n") + text)
        for number, text in enumerate(texts)
    ]
    own = base.encode_conversation(turns, None, "error").input_ids
    image = picture(20, 20)
    messages = [
        message("assistant" if number % 2 else "user", text, *([] if number else [image]))
        for number, text in enumerate(texts)
    ]
    assert ids_of(processor, messages)["input_ids"][0].tolist() == own
    # The same as plain strings, which hold no image.
    plain = [one | {"content": text} for one, text in zip(messages, texts, strict=True)]
    turns = [turn._replace(text=text) for turn, text in zip(turns, texts, strict=True)]
    own = base.encode_conversation(turns, None, "error").input_ids
    assert ids_of(processor, plain)["input_ids"][0].tolist() == own


def test_what_the_template_cannot_say_is_refused(saved: Any) -> None:
    _, _, processor = saved
    for messages in (
        [message("user", "One."), message("system", "Be brief.")],
        [message("user", "One."), message("user", "Two.")],
    ):
        with pytest.raises(Exception, match="one system turn before them"):
            processor.apply_chat_template(messages)


def test_a_system_message_has_the_same_ids_or_none(saved: Any) -> None:
    base, _, processor = saved
    asked = [message("system", " Be brief.\n"), message("user", "Is it MRI?", picture(20, 20))]
    plain = [{"role": "system", "content": "Be brief."}, asked[1]]
    if base.template.name == "huatuo":
        for messages in (asked, plain):
            with pytest.raises(Exception, match="no place for a system message"):
                processor.apply_chat_template(messages)
        with pytest.raises(UserError, match="put its words in front of the first question"):
            base.encode("Is it MRI?", system="Be brief.")
        return
    own = base.encode("Is it MRI?", [picture(20, 20)], system="Be brief.")["input_ids"]
    for messages in (asked, plain):
        found = ids_of(processor, messages, add_generation_prompt=True)["input_ids"]
        assert found.tolist() == own.tolist()


@pytest.mark.parametrize("geometry", ["pad", "crop"])
def test_pixels_are_within_two_levels(tmp_path: Path, geometry: Any) -> None:
    from dataclasses import replace

    from transformers import AutoProcessor

    llava_med_original(tmp_path / "published")
    base = load_base(str(tmp_path / "published"))
    save_base(replace(base, geometry=geometry), tmp_path / "saved")
    processor = AutoProcessor.from_pretrained(tmp_path / "saved")
    read = image_reader(base.image_processor, base.image_size, geometry)
    for size in ((32, 32), (48, 30), (30, 48)):
        image = picture(*size)
        found = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
        level = 1 / 255 / torch.tensor(read.deviation)[:, None, None]
        assert (found - read.pixels(image)).abs().div(level).max() <= 2.001


def test_the_pipeline_answers_as_the_student(saved: Any) -> None:
    from transformers import pipeline

    base, folder, _ = saved
    image = picture(32, 32).resize((base.image_size, base.image_size))  # nothing left to resize
    own = base.encode("What is it?", [image])
    expected = base.model.generate(**own, max_new_tokens=4, do_sample=False)
    asked = pipeline("image-text-to-text", model=str(folder), device="cpu", dtype=torch.float32)
    [found] = asked(
        text=[message("user", "What is it?", image)],
        max_new_tokens=4,
        return_full_text=False,
        generate_kwargs={"do_sample": False},
    )
    answer = base.tokenizer.decode(
        expected[0, own["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert found["generated_text"].strip() == answer.strip()
