"""VCD, AVISC, M3ID, DAMRO and PAI: their views, and what no published code has, by formula.

What published code has is held to its own trace (`test_published.py`).
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.decoding import avisc, damro, vcd
from pipelines.decoding.attention import watching
from pipelines.decoding.contrast import Pair, text_alone
from pipelines.decoding.generation import item_generator
from pipelines.decoding.methods import Decoding, decoding
from pipelines.decoding.prefix import prefilled
from pipelines.decoding.prompts import counted, encode_images
from shared.errors import UserError
from student_train.kernel import AttentionCall
from tests.fixtures.decoding import LIMITS, last_logits, lively_student, prompts, unpadded
from tests.fixtures.students import PATCHES

pytestmark = pytest.mark.unit
CONTRASTIVE = ("vcd", "avisc", "m3id", "damro", "pai")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "rotated"])
def model(request: pytest.FixtureRequest) -> Any:
    return lively_student(rotated=request.param)


def run(method: Decoding, model: Any, batch: Any, seed: int = 0) -> list[list[int]]:
    return method.decode(model, batch, LIMITS, method.settings, seed)


ZERO = {
    "vcd": {"alpha": 0.0, "beta": 0.0},
    "avisc": {"alpha": 0.0, "beta": 0.0},
    "damro": {"alpha": 0.0, "beta": 0.0},
    "m3id": {"decay": 0.0, "beta": 0.0},
}


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_strength_zero_is_greedy_decoding(model: Any, name: str) -> None:
    batch = prompts(model)
    zero = ZERO.get(name, {"alpha": 0.0, "gamma": 1.0, "beta": 0.0})
    method = decoding(name, overrides=zero | ({} if name == "pai" else {"sample": False}))
    assert run(method, model, batch) == run(decoding("greedy"), model, batch)


@pytest.mark.parametrize("name", ZERO)
def test_strength_zero_is_plain_sampling(model: Any, name: str) -> None:
    batch = prompts(model)
    plain = run(decoding("nucleus", overrides={"top_p": 1.0}), model, batch, seed=3)
    assert run(decoding(name, overrides=ZERO[name]), model, batch, seed=3) == plain


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_strength_changes_the_answers(model: Any, name: str) -> None:
    strong = {"m3id": {"decay": 1.0}, "pai": {"alpha": 2.0, "gamma": 4.0}}.get(name, {"alpha": 4.0})
    method = decoding(name, overrides=strong | ({} if name == "pai" else {"sample": False}))
    batch = prompts(model, ("a", "b", "c"))
    assert run(method, model, batch) != run(decoding("greedy"), model, batch)


def views(model: Any, batch: Any) -> dict[str, Any]:
    weights: dict[int, Tensor] = {}

    def read(layer: int, rows: AttentionCall) -> None:
        weights[layer] = torch.softmax(rows.logits(), dim=-1)[:, :, 0].mean(1)

    with watching(model, range(4), read), torch.no_grad():
        model(**batch.model_inputs())
    blind = avisc.blind_tokens(
        torch.stack([weights[i] for i in range(4)]), batch.image_mask, avisc.Settings()
    )
    return {
        "vcd": vcd.noisy_view(model, batch, 500, 0),
        "damro": damro.outlier_view(model, batch, damro.Settings(top_k=5)),
        "damro zero": damro.outlier_view(model, batch, damro.Settings(top_k=5, others="zero")),
        "avisc": avisc.blanked(batch, blind, "zeros", 0),
        "avisc ones": avisc.blanked(batch, blind, "ones", 0),
        "avisc noise": avisc.blanked(batch, blind, "noise", 0),
        "text": batch.without_images(),
    }


def test_every_contrast_pass_differs_from_the_main_one(model: Any) -> None:
    """The check that a harness fails whose noisy pass reuses the clean embeddings."""
    batch = prompts(model)
    with torch.no_grad():
        main = model(**batch.model_inputs()).logits[:, -1]
    for name, view in views(model, batch).items():
        own, logits = Pair(model, batch, view).first()
        assert torch.allclose(own, main, atol=1e-4)
        assert float((logits - main).abs().amax(1).min()) > 1e-2, name
    _, same = Pair(model, batch, batch).first()
    assert torch.allclose(same, main, atol=1e-4)


def test_pairs_with_one_cache_equal_full_forwards(model: Any) -> None:
    """Each row of the 2B, whatever its own and the other's length, is what it is alone."""
    batch = prompts(model)
    new = torch.tensor([[5, 9, 70], [8, 8, 30]])
    for name, view in views(model, batch).items():
        pair = Pair(model, batch, view)
        for step in range(4):
            both = pair.first() if step == 0 else pair.next(new[:, step - 1])
            for logits, asked in zip(both, (batch, view), strict=True):
                for row in range(2):
                    one = asked.select([row])
                    ids = torch.cat([one.ids[0], new[row, :step]])
                    given = one.model_inputs().get("mm_encoder_outputs")
                    extra = {"mm_encoder_outputs": given} if one.features else {}
                    whole = last_logits(model, ids, **extra)
                    assert torch.allclose(logits[row], whole, atol=2e-3), (name, step)


def test_a_step_is_one_forward_pass_of_both(model: Any) -> None:
    batch = prefilled(model, prompts(model))
    pair = Pair(model, batch, text_alone(model, batch))
    with counted(model) as counts:
        pair.first()
        assert counts == {"calls": 2, "rows": 4, "tokens": 4}  # the text's prefix was there too
        pair.next(torch.tensor([5, 8]))
        assert counts == {"calls": 3, "rows": 8, "tokens": 8}


def test_methods_share_the_text_alone(model: Any) -> None:
    batch = prefilled(model, prompts(model))
    with counted(model) as counts:
        run(decoding("m3id"), model, batch)
    assert counts["tokens"] > counts["rows"]
    with counted(model) as counts:
        run(decoding("pai"), model, batch)
    assert counts["tokens"] == counts["rows"]  # nothing is prefilled again
    # what a changed copy contrasts with is its own
    assert "text" not in batch.with_features(batch.features).shared


def test_damro_takes_no_second_pass_of_the_vision_tower(model: Any) -> None:
    tower, passes = model.model.vision_tower, []
    handle = tower.register_forward_hook(lambda *unused: passes.append(1))
    try:
        watched = prompts(model, watch=damro.watched)
        assert len(passes) == 1
        answers = run(decoding("damro"), model, watched)
        assert len(passes) == 1
        assert run(decoding("damro"), model, prompts(model)) == answers
        one = run(decoding("damro"), model, watched.select([1]))
        assert one == answers[1:]
    finally:
        handle.remove()


def test_rotation_touches_the_text_only_view_nowhere() -> None:
    """W acts on image positions alone: without images the rotated student is the plain one."""
    plain, rotated = lively_student(), lively_student(rotated=True)
    batch = prompts(plain)
    text = [Pair(one, batch, batch.without_images()).first()[1] for one in (plain, rotated)]
    assert torch.equal(text[0], text[1])
    full = [Pair(one, batch, batch).first()[1] for one in (plain, rotated)]
    assert not torch.allclose(full[0], full[1], atol=1e-2)


# --- each method's formula, by hand
# -------------------------------------------------------------------------------

Step = Callable[[Tensor, int], Tensor]  # (new tokens, step) -> scores


def by_hand(
    model: Any, scores: Step, seed: int | None, item: str, temperature: float = 1.0
) -> list[int]:
    generator = None if seed is None else item_generator(seed, item)
    new: list[int] = []
    for step in range(LIMITS.max_new_tokens):
        now = scores(torch.tensor(new, dtype=torch.long), step).double()
        now[model.config.image_token_id] = -math.inf
        if generator is None:
            token = int(now.argmax())
        else:
            p = torch.softmax(now / temperature, 0).numpy()
            place = float(torch.rand(1, generator=generator, dtype=torch.float64)) * p.sum()
            token = int(np.searchsorted(np.cumsum(p), place, side="right"))
        if token in LIMITS.end_ids:
            break
        new.append(token)
    return new


def plausible_by_hand(combined: Tensor, main: Tensor, beta: float) -> Tensor:
    return torch.where(main >= main.max() + math.log(beta), combined, torch.tensor(-math.inf))


def test_m3id_only_where_the_model_is_unsure(model: Any) -> None:
    confidence = 0.5
    batch = prompts(model)
    method = decoding(
        "m3id", overrides={"decay": 0.3, "temperature": 0.7, "confidence": confidence}
    )
    answers = run(method, model, batch, seed=1)
    for row, item in enumerate("ab"):
        ids, pixels = unpadded(batch, row)
        assert pixels is not None
        text = ids[ids != model.config.image_token_id]

        def scores(
            new: Tensor, step: int, ids: Tensor = ids, pixels: Any = pixels, text: Tensor = text
        ) -> Tensor:
            main = torch.log_softmax(last_logits(model, torch.cat([ids, new]), pixels), 0)
            bare = torch.log_softmax(last_logits(model, torch.cat([text, new])), 0)
            gamma = math.exp(-0.3 * (step + 1))
            weight = (1 - gamma) / gamma
            if float(main.max()) >= math.log(confidence):
                weight = 0.0
            return plausible_by_hand(main + weight * (main - bare), main, 0.1)

        assert answers[row] == by_hand(model, scores, 1, item, temperature=0.7)


@pytest.mark.parametrize(("given", "block"), [(-2, -2), (-1, -1), (2, 1), ([-3], -3)])
def test_damro_reads_the_block_whose_output_the_student_reads(given: Any, block: int) -> None:
    """Of `hidden_states`, the i-th is the output of block i - 1."""
    model = lively_student()
    model.config.vision_feature_layer = given
    batch = prompts(model)
    assert batch.pixels is not None
    with damro.watched(model) as seen:
        encode_images(model, batch.pixels)
    found = damro.outliers(seen["feature"], PATCHES, 4)
    tower = model.model.vision_tower
    with torch.no_grad():
        states = tower(batch.pixels, output_hidden_states=True).hidden_states
        layer = tower.encoder.layers[block]
        place = block if block >= 0 else len(tower.encoder.layers) + block
        normed = layer.layer_norm1(states[place])
        query, key = layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)
    logits = (query[:, :1] @ key[:, 1:].transpose(1, 2))[:, 0]
    assert torch.equal(found, logits.topk(4, dim=1).indices)


def test_damro_needs_an_encoder_with_a_cls_token() -> None:
    model = lively_student()
    batch = prompts(model)
    assert batch.pixels is not None
    with pytest.raises(UserError, match="CLS token before its patches; leave damro out"):
        damro.outliers(torch.zeros(1, PATCHES + 1), PATCHES - 1, 4)
    blind = SimpleNamespace(model=model.model, config=SimpleNamespace())
    with (
        pytest.raises(UserError, match="needs a vision encoder with a CLS token, as CLIP"),
        damro.watched(blind),
    ):
        pass


def test_damro_with_the_others_as_zeros() -> None:
    model = lively_student()
    batch = prompts(model)
    answers = run(decoding("damro", overrides={"others": "zero", "top_k": 4}), model, batch, seed=2)
    tower = model.model.vision_tower
    for row, item in enumerate("ab"):
        ids, pixels = unpadded(batch, row)
        assert pixels is not None
        with torch.no_grad():
            states = tower(pixels, output_hidden_states=True).hidden_states[
                -3
            ]  # enters the block the student reads
            attention = tower.encoder.layers[-2].self_attn
            normed = tower.encoder.layers[-2].layer_norm1(states)
            query, key = attention.q_proj(normed)[0], attention.k_proj(normed)[0]
        weights = torch.softmax(query[0] @ key.T / math.sqrt(query.shape[1]), 0)[1:]
        falling = np.argsort(-weights.numpy())[:4].tolist()
        kept = torch.zeros(PATCHES, dtype=torch.bool)
        kept[falling] = True
        features = torch.cat(encode_images(model, pixels))
        image = ids == model.config.image_token_id
        embeddings = model.get_input_embeddings()(ids).detach()
        embeddings[image] = features * kept[:, None]

        def scores(
            new: Tensor,
            step: int,
            ids: Tensor = ids,
            pixels: Any = pixels,
            view: Tensor = embeddings,
        ) -> Tensor:
            main = last_logits(model, torch.cat([ids, new]), pixels)
            given = torch.cat([view, model.get_input_embeddings()(new)])
            with torch.no_grad():
                other = model(inputs_embeds=given[None], use_cache=False).logits[0, -1]
            return plausible_by_hand(3 * main - 2 * other, main, 0.1)

        assert answers[row] == by_hand(model, scores, 2, item)


def test_pai_boosts_the_first_token_too(model: Any) -> None:
    """Without a cache every new token's row is boosted at once.

    Each was the newest row in its own step.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

    batch = prompts(model)
    overrides = {
        "alpha": 0.6,
        "gamma": 1.7,
        "start_layer": 1,
        "end_layer": 3,
        "boost_first": True,
    }
    answers = run(decoding("pai", overrides=overrides), model, batch)
    state: dict[str, Any] = {}

    def boosted(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        scaling: float,
        **unused: Any,
    ) -> Any:
        key, value = (
            one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value)
        )
        logits = query @ key.transpose(2, 3) * scaling
        if state["first"] is not None and 1 <= module.layer_idx < 3:
            part = logits[:, :, state["first"] :, state["image"]]
            logits[:, :, state["first"] :, state["image"]] = part + 0.6 * part.abs()
        hidden = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        weights = torch.softmax(logits.masked_fill(hidden, -torch.inf), -1)
        return (weights @ value).transpose(1, 2), None

    AttentionInterface.register("pai_by_hand", boosted)
    ALL_MASK_ATTENTION_FUNCTIONS.register("pai_by_hand", eager_mask)
    own = model.get_decoder().config
    taps = [layer.self_attn for layer in model.get_decoder().layers]
    before = [tap.config for tap in taps]

    def hooked(ids: Tensor, pixels: Any, first: int | None) -> Tensor:
        state.update(first=first, image=torch.nonzero(ids == model.config.image_token_id).flatten())
        own._attn_implementation = "pai_by_hand"
        for tap in taps:
            tap.config = own
        try:
            return last_logits(model, ids, pixels)
        finally:
            own._attn_implementation = "sdpa"
            for tap, config in zip(taps, before, strict=True):
                tap.config = config

    for row in range(2):
        ids, pixels = unpadded(batch, row)
        assert pixels is not None
        text = ids[ids != model.config.image_token_id]
        start = len(ids) - 1

        def scores(
            new: Tensor,
            step: int,
            ids: Tensor = ids,
            pixels: Any = pixels,
            text: Tensor = text,
            start: int = start,
        ) -> Tensor:
            main = torch.log_softmax(hooked(torch.cat([ids, new]), pixels, start), 0)
            bare = torch.log_softmax(hooked(torch.cat([text, new]), None, None), 0)
            return plausible_by_hand(1.7 * (main - bare) + bare, main, 0.1)

        assert answers[row] == by_hand(model, scores, None, "")
