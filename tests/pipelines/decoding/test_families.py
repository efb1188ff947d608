"""Decoding with each family: as its own `generate`, or refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.decoding.attention import watching
from pipelines.decoding.contrast import Pair
from pipelines.decoding.generation import Limits
from pipelines.decoding.methods import NAMES, decoding
from pipelines.decoding.opera_passes import Passes
from pipelines.decoding.prefix import prefilled
from pipelines.decoding.prompts import Prompts, collate, encode_images
from pipelines.decoding.vcd import noisy_view
from shared.errors import UserError
from student_train.models import load_base
from tests.fixtures.families import FAMILIES, LLAVA, QUESTIONS, Made, make, own_model, picture
from tests.fixtures.gemma3_checkpoint import write_gemma3

pytestmark = pytest.mark.integration
NEW = 8
# Why DAMRO has no patches to rank.
NO_DAMRO = {
    "smolvlm": "needs a vision encoder with a CLS token",
    "gemma3": "needs a vision encoder with a CLS token",
    "internvl": "needs an image token for each patch",
    "qwen2_5_vl": "needs a vision encoder with a CLS token",
    "qwen3_vl": "needs a vision encoder with a CLS token",
}


@pytest.fixture(scope="module", params=[*FAMILIES, "gemma3 with a short window"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("model") / "model"
    if request.param in FAMILIES:
        return make(request.param, folder)
    write_gemma3(folder, window=30)  # less than a prompt
    family = FAMILIES["gemma3"]
    return Made(family, folder, load_base(str(folder)), own_model(family, folder))


def prompts(made: Made, names: str = "ab") -> Prompts:
    encoded = [
        made.base.encode(QUESTIONS["ab".index(name)], [picture("ab".index(name))]) for name in names
    ]
    processor = made.base.processor()
    reworded = [processor.reworded(QUESTIONS["ab".index(name)], 1) for name in names]
    pad = made.base.tokenizer.pad_token_id
    return collate(encoded, list(names), made.base.model, pad, reworded=reworded)


def limits(made: Made) -> Limits:
    return Limits(NEW, (made.base.tokenizer.convert_tokens_to_ids(made.base.template.end_token),))


def answers(made: Made, name: str, batch: Prompts, **settings: Any) -> list[list[int]]:
    method = decoding(name, "equal", settings)
    found: list[list[int]] = method.decode(made.base.model, batch, limits(made), method.settings, 4)
    return found


def until_end(rows: Tensor, end: int) -> list[list[int]]:
    return [row[: row.index(end)] if end in row else row for row in rows.tolist()]


@pytest.mark.parametrize(("name", "beams"), [("greedy", 1), ("beam", 5)])
def test_plain_methods_are_transformers_generate(made: Made, name: str, beams: int) -> None:
    from transformers import GenerationConfig

    inputs, end = made.inputs(), limits(made).end_ids[0]
    config = GenerationConfig(
        max_new_tokens=NEW,
        do_sample=False,
        num_beams=beams,
        eos_token_id=end,
        pad_token_id=made.base.tokenizer.pad_token_id,
        suppress_tokens=[made.base.image_token_id],
    )
    made.own.generation_config = GenerationConfig()
    tokens = made.own.generate(**made.whole(inputs), generation_config=config)
    expected = until_end(tokens[:, inputs["input_ids"].shape[1] :], end)
    assert answers(made, name, prompts(made)) == expected
    assert len({token for row in expected for token in row}) > 1


def fresh(made: Made, ids: Tensor, features: Tensor | None) -> Tensor:
    """Next-token logits (V,) of transformers' own class, without cache or padding."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    inputs: dict[str, Any] = made.whole({"input_ids": ids[None]})
    if features is None:
        inputs = {"input_ids": ids[None]}
    else:
        found: Any = BaseModelOutputWithPooling(pooler_output=features[None])
        if made.family.class_name in (LLAVA, "Qwen2_5_VLForConditionalGeneration"):
            # which want a list of images
            found = BaseModelOutputWithPooling(pooler_output=[features])
        if made.family.template == "qwen3_vl":  # and of each layer of DeepStack
            own, *deep = features.split(32, dim=1)
            found = BaseModelOutputWithDeepstackFeatures(
                pooler_output=[own], deepstack_features=[[one] for one in deep]
            )
        inputs["mm_encoder_outputs"] = {"image": found}
    with torch.no_grad():
        logits: Tensor = made.own(**inputs, use_cache=False).logits[0, -1]
    return logits


@pytest.mark.parametrize("view", ["noisy", "text"])
def test_a_pair_sees_prompt_and_view_as_the_models_own_class_does(made: Made, view: str) -> None:
    batch = prefilled(made.base.model, prompts(made))
    changed = (
        noisy_view(made.base.model, batch, 500, 0) if view == "noisy" else batch.without_images()
    )
    pair = Pair(made.base.model, batch, changed)
    said = torch.tensor([[7, 9, 11], [40, 8, 300]])
    for step in range(4):
        both = pair.first() if step == 0 else pair.next(said[:, step - 1])
        for logits, asked in zip(both, (batch, changed), strict=True):
            for row in range(2):
                alone = asked.select([row])
                features = alone.features[0] if alone.features else None
                expected = fresh(made, torch.cat([alone.ids[0], said[row, :step]]), features)
                torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_answers_whatever_the_batch_or_says_why_not(made: Made, name: str) -> None:
    if name == "damro" and made.family.template in NO_DAMRO:
        with pytest.raises(UserError, match=NO_DAMRO[made.family.template]):
            answers(made, name, prompts(made))
        return
    if name == "opera" and getattr(made.own.config.text_config, "sliding_window", None) == 30:
        with pytest.raises(UserError, match=r"within this model's sliding window of 30 tokens"):
            answers(made, name, prompts(made))
        return
    if name == "sid" and getattr(made.own.config.text_config, "sliding_window", None) == 30:
        with pytest.raises(UserError, match="which sees 30 tokens"):
            answers(made, name, prompts(made))
        return
    together = answers(made, name, prompts(made))
    assert together == answers(made, name, prompts(made, "a")) + answers(
        made, name, prompts(made, "b")
    )
    assert all(0 <= len(one) <= NEW for one in together)
    assert made.base.image_token_id not in {token for one in together for token in one}


def test_operas_own_mask_shows_what_the_models_own_class_sees(made: Made) -> None:
    if getattr(made.own.config.text_config, "sliding_window", None) == 30:
        pytest.skip("OPERA refuses this one")
    batch = prefilled(made.base.model, prompts(made))
    last = len(made.base.model.get_decoder().layers) - 1
    passes = Passes(made.base.model, batch)
    tried = torch.tensor([[7, 40, 11]])
    with torch.no_grad(), watching(made.base.model, [last], passes.see):
        first = passes.first()
        hidden, _ = passes.attempt([tried, tried], [0, 1])
        found = passes.logits(hidden)
    for row in range(2):
        alone = batch.select([row])
        ids, features = alone.ids[0], alone.features[0]
        torch.testing.assert_close(first[row], fresh(made, ids, features), atol=1e-5, rtol=0)
        for place, token in enumerate(tried[0]):
            expected = fresh(made, torch.cat([ids, token[None]]), features)
            torch.testing.assert_close(found[row, place], expected, atol=1e-5, rtol=0)


def test_images_are_encoded_as_its_own_class_does(made: Made) -> None:
    inputs = made.inputs()
    found = encode_images(made.base.model, inputs["pixel_values"])
    whole = made.whole(inputs)
    named = {name: whole[name] for name in ("pixel_values", "image_grid_thw") if name in whole}
    with torch.no_grad():
        output = made.own.model.get_image_features(**named, return_dict=True)
    layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
    assert len(found) == len(output.pooler_output) == 2
    for image, one in enumerate(found):
        expected = torch.cat([layer[image] for layer in layers], dim=1)
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=0)
