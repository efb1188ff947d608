"""SID, ICD, DeCo, VISTA and VAF step by step, by plain forwards without cache, padding or batch.

What the published code has is held to its own trace (`test_published_later.py`); here are the rows
of a batch, the rotation, several images and none.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.decoding import deco, icd, sid, vista
from pipelines.decoding.early import layers_of
from pipelines.decoding.methods import decoding
from pipelines.decoding.prefix import prefilled
from pipelines.decoding.prompts import counted
from shared.errors import UserError
from student_train.models.prompts import encode_prompt
from student_train.models.templates import TEMPLATES
from tests.fixtures.decoding import (
    LIMITS,
    QUESTIONS,
    last_logits,
    lively_student,
    prompts,
    traced,
    unpadded,
)
from tests.fixtures.students import PATCHES, byte_tokenizer

pytestmark = pytest.mark.unit
LATER = ("sid", "icd", "deco", "vista", "vaf")
Change = Callable[[int, Tensor], Tensor]  # (layer, logits (1, H, T, T)) -> changed logits


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "rotated"])
def model(request: pytest.FixtureRequest) -> Any:
    return lively_student(rotated=request.param, layers=6)


def check_by_hand(
    model: Any, name: str, images: int, scores_of: Callable[..., Tensor], **settings: Any
) -> None:
    """Hold every step of two rows, of unequal length, to `scores_of(ids, pixels, new, row)`."""
    method = decoding(name, "equal", settings)
    batch = prompts(model, images=images)
    answers = method.decode(model, batch, LIMITS, method.settings, 0)
    for row in range(2):
        ids, pixels = unpadded(batch, row)
        alone, seen = traced(model, method, batch.select([row]), LIMITS)
        assert alone == answers[row]
        new: list[int] = []
        for ours in seen:
            with torch.no_grad():
                theirs = scores_of(ids, pixels, torch.tensor(new, dtype=torch.long), row)
            theirs[model.config.image_token_id] = -math.inf
            assert torch.equal(ours.isneginf(), theirs.isneginf())
            # float32 sums of logits of size 30 in another order, amplified by 3 at most
            torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=5e-3)
            new.append(int(theirs.argmax()))
        assert [token for token in new if token not in LIMITS.end_ids] == answers[row]


@contextmanager
def attention_by_hand(model: Any, change: Change) -> Iterator[None]:
    """Compute every layer's attention from its causal logits, changed by `change`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

    def kernel(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> Any:
        key, value = (
            one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value)
        )
        logits = query @ key.transpose(2, 3) * options["scaling"]
        hidden = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        logits = change(module.layer_idx, logits).masked_fill(hidden, -torch.inf)
        return (torch.softmax(logits, -1) @ value).transpose(1, 2), None

    AttentionInterface.register("later_by_hand", kernel)
    ALL_MASK_ATTENTION_FUNCTIONS.register("later_by_hand", eager_mask)
    own = model.get_decoder().config
    modules = [layer.self_attn for layer in model.get_decoder().layers]
    before = own._attn_implementation, [module.config for module in modules]
    own._attn_implementation = "later_by_hand"
    for module in modules:
        module.config = own
    try:
        yield
    finally:
        own._attn_implementation = before[0]
        for module, config in zip(modules, before[1], strict=True):
            module.config = config


def states(model: Any, ids: Tensor, pixels: Any) -> tuple[Tensor, ...]:
    """Return what enters each layer, (T, d), and last what the head reads."""
    output = model(
        input_ids=ids[None], pixel_values=pixels, output_hidden_states=True, use_cache=False
    )
    return tuple(one[0] for one in output.hidden_states)


@pytest.mark.parametrize("images", [1, 2])
def test_vaf(model: Any, images: int) -> None:
    token = model.config.image_token_id

    def scores(ids: Tensor, pixels: Any, new: Tensor, row: int) -> Tensor:
        places = torch.nonzero(ids == token).flatten()
        first, last = int(places[0]), int(places[-1])

        def change(layer: int, logits: Tensor) -> Tensor:
            logits = logits.clone()
            if 2 <= layer <= 3:
                logits[:, :, last + 1 :, places] *= 1.6
                logits[:, :, last + 1 :, :first] *= 0.5
            return logits

        with attention_by_hand(model, change):
            return last_logits(model, torch.cat([ids, new]), pixels)

    given = {"enhance": 1.6, "suppress": 0.5, "first_layer": 2, "last_layer": 3}
    check_by_hand(model, "vaf", images, scores, **given)


def test_deco(model: Any) -> None:
    words = model.config.image_token_id  # the last id; all before it may be said

    def scores(ids: Tensor, pixels: Any, new: Tensor, row: int) -> Tensor:
        read = states(model, torch.cat([ids, new]), pixels)
        last = model.lm_head(read[-1][-1])[:words].double()
        early = [
            model.lm_head(model.get_decoder().norm(read[layer][-1]))[:words].double()
            for layer in (2, 3, 4)
        ]
        order = last.softmax(0).argsort(descending=True).tolist()
        held, candidates = 0.0, []
        for one in order[:12]:
            candidates.append(one)
            held += float(last.softmax(0)[one])
            if held >= 0.8:
                break
        sure = [float(one.softmax(0)[candidates].max()) for one in early]
        best = max(range(3), key=lambda place: sure[place])
        out = torch.full((words + 1,), -math.inf, dtype=torch.float64)
        out[candidates] = (last + 0.9 * sure[best] * early[best])[candidates]
        return out

    given = {"alpha": 0.9, "top_p": 0.8, "top_k": 12, "first_layer": 2, "last_layer": 4}
    check_by_hand(model, "deco", 1, scores, **given)


def test_deco_of_candidates_that_are_all_the_words() -> None:
    """Fewer words than `top_k`, and the layer is each row's own."""
    generator = torch.Generator().manual_seed(0)
    logits, early = (3 * torch.randn(*shape, generator=generator) for shape in ((4, 9), (4, 3, 9)))
    settings = deco.Settings(top_p=1.0)
    together = deco.corrected(logits, early, settings)
    assert not bool(together.isinf().any())
    alone = [deco.corrected(logits[i : i + 1], early[i : i + 1], settings) for i in range(4)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("remainder", [False, True])
def test_vista(model: Any, remainder: bool) -> None:
    token = model.config.image_token_id

    def behind(ids: Tensor, pixels: Any) -> list[Tensor]:
        found: list[Tensor] = []
        handles = [
            layer.register_forward_hook(
                lambda module, args, output: found.append(
                    (output if isinstance(output, Tensor) else output[0])[0]
                )
            )
            for layer in model.get_decoder().layers
        ]
        last_logits(model, ids, pixels)
        for handle in handles:
            handle.remove()
        return found

    def scores(ids: Tensor, pixels: Any, new: Tensor, row: int) -> Tensor:
        text = ids[ids != token]
        vectors = [
            (one[-1] - other[-1]).double()
            for one, other in zip(behind(ids, pixels), behind(text, None), strict=True)
        ]
        if remainder:
            vectors[0][0] += 1

        def steer(vector: Tensor) -> Any:
            def hook(module: Any, args: Any, output: Tensor) -> Tensor:
                x = output.double()
                away = functional.cosine_similarity(x, -vector[None, None], dim=-1)
                pull = 0.4 * (1 + away.clamp(min=0))[..., None] * vector / vector.norm()
                way = x / x.norm(dim=-1, keepdim=True) + pull
                return (way / way.norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)).float()

            return hook

        handles = [
            layer.mlp.register_forward_hook(steer(vector))
            for layer, vector in zip(model.get_decoder().layers, vectors, strict=True)
        ]
        read = states(model, torch.cat([ids, new]), pixels)
        for handle in handles:
            handle.remove()
        said = torch.stack([model.lm_head(read[layer][-1]) for layer in (4, 5)]).mean(0)
        return 0.3 * said + 0.7 * model.lm_head(read[-1][-1])

    given = {"strength": 0.4, "first_layer": 3, "last_layer": 4, "unit_remainder": remainder}
    check_by_hand(model, "vista", 1, scores, **given)


@pytest.mark.parametrize("images", [1, 2])
def test_sid(model: Any, images: int) -> None:
    """Each row hides what the layer before ranked for it; the prompt's rows as its last one."""
    token = model.config.image_token_id

    def scores(ids: Tensor, pixels: Any, new: Tensor, row: int) -> Tensor:
        places, hidden = torch.nonzero(ids == token).flatten(), {}

        def change(layer: int, logits: Tensor) -> Tensor:
            rows = logits.shape[2]
            if layer == 1:
                seen = torch.ones(rows, rows).tril().log()
                mean = torch.softmax(logits + seen, -1)[0].mean(0)
                for one in range(len(ids) - 1, rows):
                    order = mean[one, places].argsort()
                    hidden[one] = places[order[5:]]
            if layer < 2:
                return logits
            logits = logits.clone()
            for one in range(rows):
                logits[:, :, one, hidden[max(one, len(ids) - 1)]] = -torch.inf
            return logits

        whole = torch.cat([ids, new])
        main = last_logits(model, whole, pixels)
        with attention_by_hand(model, change):
            other = last_logits(model, whole, pixels)
        return 1.7 * main - 0.7 * other

    check_by_hand(model, "sid", images, scores, keep=5, alpha=0.7)


def test_icd(model: Any) -> None:
    def scores(ids: Tensor, pixels: Any, new: Tensor, row: int) -> Tensor:
        encoded = encode_prompt(
            QUESTIONS["ab"[row]],
            TEMPLATES["huatuo"],
            byte_tokenizer(),
            PATCHES,
            model.config.image_token_id,
            images=1,
            instruction=icd.INSTRUCTIONS["avoid"],
        )
        disturbed = torch.tensor([*encoded.input_ids, *new.tolist()])
        main = last_logits(model, torch.cat([ids, new]), pixels)
        other = last_logits(model, disturbed, pixels)
        combined = 3 * main - 2 * other
        allowed = main[: model.config.image_token_id]
        return combined.masked_fill(main < allowed.max() + math.log(0.2), -torch.inf)

    check_by_hand(model, "icd", 1, scores, alpha=2.0, beta=0.2, instruction="avoid")


ZERO: dict[str, dict[str, Any]] = {
    "sid": {"alpha": 0.0},
    "icd": {"alpha": 0.0, "beta": 0.0},
    "deco": {"alpha": 0.0},
    "vista": {"strength": 0.0, "alpha": 0.0},
    "vaf": {"enhance": 1.0, "suppress": 1.0},
}


@pytest.mark.parametrize("name", LATER)
def test_strength_zero_is_greedy_decoding_and_more_is_not(model: Any, name: str) -> None:
    batch = prompts(model, ("a", "b", "c"))

    def answers(given: dict[str, Any]) -> list[list[int]]:
        method = decoding(name, "equal", given)
        found: list[list[int]] = method.decode(model, batch, LIMITS, method.settings, 0)
        return found

    greedy = decoding("greedy")
    plain = greedy.decode(model, batch, LIMITS, greedy.settings, 0)
    assert answers(ZERO[name]) == plain
    strong = {"sid": {"alpha": 6.0}, "vaf": {"enhance": 4.0, "suppress": 0.1}}
    assert answers(strong.get(name, {"alpha": 4.0} if name != "vista" else {})) != plain


@pytest.mark.parametrize("name", ["vista", "vaf"])
def test_without_an_image_nothing_is_steered(model: Any, name: str) -> None:
    batch = prompts(model, images=0)
    given = {"alpha": 0.0} if name == "vista" else {}
    method, greedy = decoding(name, overrides=given), decoding("greedy")
    assert method.decode(model, batch, LIMITS, method.settings, 0) == greedy.decode(
        model, batch, LIMITS, greedy.settings, 0
    )


@pytest.mark.parametrize("name", ["deco", "vaf"])
def test_one_forward_pass_a_token(model: Any, name: str) -> None:
    batch, method = prefilled(model, prompts(model)), decoding(name)
    with counted(model) as counts:
        answers = method.decode(model, batch, LIMITS, method.settings, 0)
    prefill = 1 if name == "vaf" else 0  # VAF's own: its layers read the prompt otherwise
    assert counts["calls"] <= prefill + max(len(one) for one in answers) + 1


def test_layers_of_another_depth_are_at_the_same_share(model: Any) -> None:
    assert layers_of(model, "deco", (None, None), (20, 28)) == range(4, 6)
    assert layers_of(model, "deco", (1, None), (20, 28)) == range(1, 6)
    assert layers_of(model, "vista", (None, 1), (25, 30), but=1) == range(1, 2)
    assert layers_of(model, "vaf", (3, None), (9, 14)) == range(3, 4)
    deep = lively_student(layers=32)
    assert layers_of(deep, "deco", (None, None), (20, 28)) == range(20, 29)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("deco", {"last_layer": 6}, r"deco\.last_layer=6: name layers within 0\.\.5"),
        ("vaf", {"first_layer": 4, "last_layer": 2}, "the last not before the first"),
        (
            "vista",
            {"last_layer": 5},
            r"vista\.last_layer=5: name layers within 0\.\.4",
        ),
        ("sid", {"layer": 6}, r"sid\.layer=6: it must be within 1\.\.5"),
        ("sid", {"keep": PATCHES}, f"a prompt has {PATCHES} image tokens, and none would be hid"),
    ],
)
def test_what_a_model_cannot_do_is_refused(
    model: Any, name: str, given: dict[str, Any], message: str
) -> None:
    method = decoding(name, overrides=given)
    if "keep" not in given:  # before the first answer
        with pytest.raises(UserError, match=message):
            method.settled(model)
    with pytest.raises(UserError, match=message):
        method.decode(model, prompts(model), LIMITS, method.settings, 0)


def test_the_refusals_way_out_works(model: Any) -> None:
    for name, given in (("sid", {"keep": PATCHES - 1}), ("vista", {"last_layer": 4})):
        method = decoding(name, overrides=given)
        assert method.decode(model, prompts(model), LIMITS, method.settings, 0)


def test_icd_needs_the_words(model: Any) -> None:
    from dataclasses import replace

    method = decoding("icd")
    batch = replace(prompts(model), reworded=None)
    with pytest.raises(UserError, match="ICD writes the question anew"):
        method.decode(model, batch, LIMITS, method.settings, 0)


def test_vista_needs_an_mlp() -> None:
    model = lively_student()
    del model.get_decoder().layers[1].mlp
    with pytest.raises(UserError, match="have no module `mlp`; leave vista out"):
        vista.check(model, vista.Settings())


def test_sid_keeps_the_published_share() -> None:
    image = torch.ones(2, 576, dtype=torch.bool)
    image[1, 256:] = False
    assert sid.kept_counts(image, None).tolist() == [100, 44]
    assert sid.kept_counts(image, 50).tolist() == [50, 50]
    assert sid.kept_counts(torch.zeros(1, 4, dtype=torch.bool), None).tolist() == [1]
