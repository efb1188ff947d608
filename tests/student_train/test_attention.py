"""Hooks.

Rotation and tap against a plain forward with eager attention, whatever kernel, padding or batch.
"""

from typing import Any, cast

import pytest
import torch
from torch import nn

from shared.errors import UserError
from student_train.attention import Request, image_positions, install, observing
from student_train.rotation import Rotation
from tests.fixtures.students import HIDDEN, PATCHES, tiny_llava

pytestmark = pytest.mark.unit
LAYER = 2


def hooked(model, layer=LAYER, scale=0.3):
    rotations = nn.ModuleDict({str(layer): Rotation(HIDDEN)})
    torch.manual_seed(1)
    nn.init.normal_(cast("Any", rotations[str(layer)]).weight, std=scale)
    model.rotation = rotations
    return install(model, rotations, (layer,), model.config.image_token_id)


def batch(model, side="right", lengths=(40, 33), starts=(3, 6)):
    """Two samples of unequal length with one image each.

    Returns inputs and the request for their question rows.
    """
    torch.manual_seed(2)
    longest = max(lengths)
    ids = torch.full((2, longest), model.config.text_config.pad_token_id)
    mask = torch.zeros_like(ids)
    columns, spans = [], []
    for row, (length, start) in enumerate(zip(lengths, starts, strict=True)):
        offset = longest - length if side == "left" else 0
        text = torch.randint(5, 200, (length,), generator=torch.Generator().manual_seed(row))
        text[start : start + PATCHES] = model.config.image_token_id
        ids[row, offset : offset + length] = text
        mask[row, offset : offset + length] = 1
        columns.append(torch.arange(PATCHES) + offset + start)
        begin = offset + start + PATCHES
        spans.append(list(range(begin, begin + 5 + row)))
    rows = torch.tensor([spans[0] + spans[0][:1], spans[1]])
    request = Request(
        torch.tensor([0, 1]), torch.stack(columns), torch.tensor([0, 1]), rows, torch.tensor([5, 6])
    )
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(9))
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}, request


def seen(model, channel, inputs, request):
    with torch.no_grad(), observing(channel, request) as observed:
        logits = model(**inputs).logits
    return logits, observed.tokens[LAYER], observed.attention[LAYER]


def expected_attention(model, inputs, request):
    """All weights of layer l from an eager forward; rows, heads, columns picked by loops."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions[LAYER]
    found = []
    for span in range(len(request.span_image)):
        image = int(request.span_image[span])
        sample = int(request.image_sample[image])
        rows = request.span_rows[span][: int(request.span_lengths[span])]
        found.append(weights[sample][:, rows][:, :, request.image_columns[image]].mean((0, 1)))
    return torch.stack(found)


def test_zero_rotation_is_the_plain_model():
    inputs, _ = batch(tiny_llava())
    plain, model = tiny_llava(), tiny_llava()
    hooked(model, scale=0.0)
    with torch.no_grad():
        assert torch.equal(plain(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2"])
def test_rotation_acts_on_image_rows_at_the_input_of_layer_l(text):
    model, plain = tiny_llava(text=text), tiny_llava(text=text)
    channel = hooked(model)
    inputs, request = batch(model)
    _, tokens, _ = seen(model, channel, inputs, request)
    with torch.no_grad():
        states = plain(**inputs, output_hidden_states=True).hidden_states[
            LAYER
        ]  # the output of layer l - 1
    whole = torch.eye(HIDDEN) + model.rotation[str(LAYER)].matrix()
    expected = torch.stack(
        [(whole @ states[row][request.image_columns[row]].T).T for row in (0, 1)]
    )
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-4)


def test_text_alone_passes_untouched():
    plain, model = tiny_llava(), tiny_llava()
    hooked(model)
    ids = torch.randint(5, 200, (2, 12))
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_tap_reads_what_eager_attention_has(kernel, side, text):
    model = tiny_llava(text=text)
    model.set_attn_implementation(kernel)
    channel = hooked(model)
    inputs, request = batch(model, side)
    _, _, attention = seen(model, channel, inputs, request)
    torch.testing.assert_close(
        attention, expected_attention(model, inputs, request), atol=1e-6, rtol=1e-4
    )


def test_padding_side_and_batch_do_not_matter():
    model = tiny_llava()
    channel = hooked(model)
    right, left = batch(model, "right"), batch(model, "left")
    _, tokens, attention = seen(model, channel, *right)
    _, other_tokens, other_attention = seen(model, channel, *left)
    torch.testing.assert_close(tokens, other_tokens, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(attention, other_attention, atol=1e-6, rtol=1e-4)
    inputs, request = right
    alone = {
        "input_ids": inputs["input_ids"][1:, :33],
        "attention_mask": inputs["attention_mask"][1:, :33],
    }
    single = Request(
        torch.tensor([0]),
        request.image_columns[1:],
        torch.tensor([0]),
        request.span_rows[1:],
        request.span_lengths[1:],
    )
    _, one, one_attention = seen(
        model, channel, alone | {"pixel_values": inputs["pixel_values"][1:]}, single
    )
    torch.testing.assert_close(one[0], tokens[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one_attention[0], attention[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_cached_generation_equals_the_full_forward(beams):
    model = tiny_llava()
    hooked(model)
    inputs, _ = batch(model, "left")
    options = {
        "do_sample": False,
        "num_beams": beams,
        "max_new_tokens": 6,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    cached = model.generate(**inputs, **options, use_cache=True)
    full = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(cached, full)
    plain = tiny_llava().generate(**inputs, **options)
    assert not torch.equal(cached, plain)


def test_gradients_do_not_depend_on_checkpointing():
    model = tiny_llava()
    channel = hooked(model)
    model.train()
    inputs, request = batch(model)
    reference = gradients(model, channel, inputs, request)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.zero_grad()
    found = gradients(model, channel, inputs, request)
    assert f"rotation.{LAYER}.weight" in found
    assert found.keys() == reference.keys()
    for name, gradient in found.items():
        # A bias on all keys leaves the softmax alone: its gradient is zero but for rounding, hence
        # the floor.
        scale = max(float(reference[name].abs().max()), 1.0)
        torch.testing.assert_close(
            gradient, reference[name], atol=2e-6 * scale, rtol=1e-4, msg=name
        )


def gradients(model, channel, inputs, request):
    with observing(channel, request) as observed:
        logits = model(**inputs).logits
    loss = (
        logits.square().mean()
        + observed.tokens[LAYER].std()
        + (observed.attention[LAYER] ** 2).sum()
    )
    loss.backward()
    return {
        name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None
    }


def test_embeddings_need_positions():
    model = tiny_llava()
    channel = hooked(model)
    inputs, _ = batch(model)
    with torch.no_grad():
        expected = model(**inputs).logits
        mask = inputs["input_ids"] == model.config.image_token_id
        features = torch.cat(list(model.get_image_features(inputs["pixel_values"]).pooler_output))
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
        embeddings = embeddings.masked_scatter(mask.unsqueeze(-1), features)
        rest = {"inputs_embeds": embeddings, "attention_mask": inputs["attention_mask"]}
        with pytest.raises(ValueError, match="image_positions"):
            model(**rest)
        with pytest.raises(ValueError, match="image_positions"):
            model.get_decoder()(**rest)
        with image_positions(channel, mask):
            torch.testing.assert_close(model(**rest).logits, expected)


@pytest.mark.parametrize("layer", [0, 4, 9])
def test_a_layer_that_is_not_there_is_refused(layer):
    model = tiny_llava()
    with pytest.raises(ValueError, match=r"outside 1\.\.3"):
        install(model, nn.ModuleDict(), (layer,), 5)


def test_no_name_changes():
    plain, model = tiny_llava(), tiny_llava()
    hooked(model)
    assert set(model.state_dict()) - set(plain.state_dict()) == {f"rotation.{LAYER}.weight"}
    assert set(plain.state_dict()) <= set(model.state_dict())


def test_places_of_an_image_without_one_are_one_line():
    model = tiny_llava()
    hooked(model)
    ids = batch(model)[0]["input_ids"]
    for given in ({}, {"pixel_values": None}):
        with pytest.raises(UserError, match="no image came with it"):
            model(input_ids=ids, **given)
    with pytest.raises(UserError, match="no image came with it"):
        model.generate(input_ids=ids, max_new_tokens=2, do_sample=False)
