"""DoLa: its layers and, with the final norm, its formula (published code: `test_published.py`)."""

import math
from typing import Any

import pytest
import torch

from pipelines.decoding.dola import contrasted_layers, repetition_penalty
from pipelines.decoding.methods import decoding
from pipelines.decoding.overruled import Overruled, overruled
from pipelines.decoding.prefix import prefilled
from pipelines.decoding.prompts import counted
from shared.errors import UserError
from tests.fixtures.decoding import LIMITS, lively_student, prompts, unpadded

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "rotated"])
def model(request: pytest.FixtureRequest) -> Any:
    return lively_student(rotated=request.param, layers=6)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_dola_with_the_final_norm(model: Any, penalty: float) -> None:
    batch = prompts(model)
    layers = (0, 2, 3)
    overrides = {
        "candidate_layers": layers,
        "relative_top": 0.3,
        "norm_premature": True,
        "repetition_penalty": penalty,
    }
    method = decoding("dola", overrides=overrides)
    answers = method.decode(model, batch, LIMITS, method.settings, 0)
    for row in range(2):
        ids, pixels = unpadded(batch, row)
        new: list[int] = []
        for _ in range(LIMITS.max_new_tokens):
            sequence = torch.cat([ids, torch.tensor(new, dtype=torch.long)])
            with torch.no_grad():
                output = model(
                    input_ids=sequence[None],
                    pixel_values=pixels,
                    output_hidden_states=True,
                    use_cache=False,
                )
            words = model.config.image_token_id  # the last id; all before it may be said
            last = torch.log_softmax(output.logits[0, -1, :words].double(), 0)
            early, divergence = {}, {}
            for layer in layers:
                state = output.hidden_states[layer][0, -1]
                state = model.get_decoder().norm(state)
                early[layer] = torch.log_softmax(model.lm_head(state).detach().double()[:words], 0)
                mean = (last.exp() + early[layer].exp()) / 2
                sides = [
                    torch.nn.functional.kl_div(one, mean, reduction="none").mean()
                    for one in (last, early[layer])
                ]
                divergence[layer] = float(sides[0] + sides[1]) / 2
            premature = max(layers, key=lambda layer: divergence[layer])
            scores = last - early[premature]
            scores[last < last.max() + math.log(0.3)] = -math.inf
            for token in set(
                sequence[sequence < words].tolist()
            ):  # as in CTRL: towards minus infinity whatever the sign
                scores[token] = (
                    scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
                )
            token = int(scores.argmax())
            if token in LIMITS.end_ids:
                break
            new.append(token)
        assert answers[row] == new


def test_by_default_the_even_layers_of_the_lower_half_are_candidates(model: Any) -> None:
    """As `transformers` takes for `dola_layers="low"` in a model of fewer than 40 layers."""
    batch = prompts(model, ("a", "b", "c"))

    def answers(layers: tuple[int, ...] | None) -> list[list[int]]:
        method = decoding("dola", overrides={"candidate_layers": layers, "relative_top": 0.01})
        return method.decode(model, batch, LIMITS, method.settings, 0)

    assert answers(None) == answers((0, 2))
    assert answers(None) != answers((1,))


def test_one_forward_pass_a_token(model: Any) -> None:
    batch = prefilled(model, prompts(model))
    method = decoding("dola")
    with counted(model) as counts:
        answers = method.decode(model, batch, LIMITS, method.settings, 0)
    assert counts["calls"] <= max(len(one) for one in answers) + 1


def test_rows_choose_their_own_layer() -> None:
    """Row by row the result is what a batch of one gives."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 50, generator=generator)
    early = 3 * torch.randn(4, 3, 50, generator=generator)
    together = contrasted_layers(logits, early, 0.1)
    alone = torch.cat(
        [contrasted_layers(logits[i : i + 1], early[i : i + 1], 0.1) for i in range(4)]
    )
    assert torch.allclose(together, alone, atol=1e-6)


def test_an_equal_candidate_leaves_only_what_is_plausible() -> None:
    logits = torch.tensor([[2.0, 1.9, -9.0]])
    scores = contrasted_layers(logits, logits[:, None], 0.1)
    assert torch.allclose(scores[0, :2], torch.zeros(2), atol=1e-6)
    assert scores[0, 2] == -math.inf


def test_a_layer_that_is_not_there(model: Any) -> None:
    method = decoding("dola", overrides={"candidate_layers": (0, 6)})
    with pytest.raises(UserError, match=r"within 0\.\.5"):
        method.decode(model, prompts(model), LIMITS, method.settings, 0)


def test_padding_is_no_token_that_was_said(model: Any) -> None:
    """The pad may be the end token, which a shorter prompt has not said."""
    batch = prompts(model, ("a", "b"))  # "a" is the shorter one
    assert int(batch.mask[0, 0]) == 0
    end = 250
    assert end not in batch.ids
    ids = batch.ids.where(batch.mask.bool(), torch.tensor(end))
    scores = repetition_penalty(batch, 2.0)(ids, torch.ones(2, 260))
    for row in range(2):
        said = set(batch.ids[row][batch.mask[row].bool()].tolist())
        assert {token for token in range(260) if scores[row, token] == 0.5} == said


def loud_early(loud: float) -> Any:
    """A student whose head is tied, its embeddings `loud` times themselves.

    The final norm makes the last layer's logits as loud as before.
    """
    model = lively_student(layers=6)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.25)  # as it was drawn
        model.get_decoder().embed_tokens.weight.copy_(model.lm_head.weight)
        model.get_decoder().embed_tokens.weight.mul_(loud)
        model.get_decoder().norm.weight.div_(loud)
    model.lm_head.weight = model.get_decoder().embed_tokens.weight
    return model


def test_a_step_is_counted_where_no_order_of_the_last_layer_could_change_the_choice() -> None:
    """Every order that plausible tokens can have is tried in the place of the last layer's."""
    top, generator = 0.1, torch.Generator().manual_seed(3)
    for scale in (0.1, 1.0, 3.0, 9.0, 30.0):
        logits = 2 * torch.randn(1, 12, generator=generator)
        early = scale * torch.randn(1, 1, 12, generator=generator)
        found = contrasted_layers(logits, early, top)
        counts = Overruled()
        counts.see(logits, found, top, torch.ones(1, dtype=torch.bool))
        plausible = torch.nonzero(found[0].isfinite()).flatten()
        if len(plausible) < 2:
            assert (counts.choices, counts.alone) == (0, 0)
            continue
        log_early = torch.log_softmax(early[0, 0].double(), 0)
        wins = set()
        for favoured in plausible.tolist():  # as far above all others as plausible tokens may be
            last = torch.full((12,), -math.inf, dtype=torch.float64)
            last[plausible] = math.log(top)
            last[favoured] = 0.0
            wins.add(int((last - log_early).argmax()))
        assert counts.choices == 1
        assert counts.alone == (len(wins) == 1), scale


def test_rows_that_have_ended_are_not_counted() -> None:
    logits = torch.zeros(2, 3)
    early = torch.tensor([[[9.0, 0.0, 4.0]]]).expand(2, -1, -1)
    counts = Overruled()
    counts.see(logits, contrasted_layers(logits, early, 0.1), 0.1, torch.tensor([True, False]))
    assert (counts.choices, counts.alone) == (1, 1)


def test_one_line_where_the_early_layer_chooses_alone(capsys: pytest.CaptureFixture[str]) -> None:
    method = decoding("dola", "equal")
    for loud in (0.1, 10.0):
        model = loud_early(loud)
        for _ in range(3):
            method.decode(model, prompts(model, "abc"), LIMITS, method.settings, 0)
        said = " ".join(capsys.readouterr().err.split())
        counts = overruled(model)
        assert counts.choices >= 8
        assert (2 * counts.alone > counts.choices) == (loud == 10.0)
        assert said.count("DoLa's early layer chose alone") == (loud == 10.0)
    assert "(its head is tied); leave dola out for this model" in said
