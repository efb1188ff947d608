"""Beam search against transformers' own.

That goes on until as many answers have ended as there are beams.
"""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from pipelines.decoding.early_end import attainable
from pipelines.decoding.generation import Limits
from pipelines.decoding.methods import decoding
from pipelines.decoding.prefix import prefilled
from pipelines.decoding.prompts import Prompts, counted
from tests.fixtures.decoding import lively_student, prompts

pytestmark = pytest.mark.unit

LONGEST = 14


@pytest.fixture(scope="module", params=[1.0, 4.0], ids=["unsure", "sure"])
def model(request: pytest.FixtureRequest) -> Any:
    model = lively_student()
    with torch.no_grad():
        model.lm_head.weight.mul_(request.param)
    return model


def plain_beam_search(
    model: Any, batch: Prompts, ends: tuple[int, ...], length_penalty: float
) -> list[list[int]]:
    """Answers of `generate` alone, in one call from the prompt's first token on.

    The image token is suppressed.
    """
    config = GenerationConfig(
        max_new_tokens=LONGEST,
        eos_token_id=list(ends),
        pad_token_id=batch.pad_token_id,
        num_beams=4,
        length_penalty=length_penalty,
        suppress_tokens=[model.config.image_token_id],
        renormalize_logits=True,
    )
    with torch.no_grad():
        output = model.generate(**batch.model_inputs(), generation_config=config)
    new = output[:, batch.ids.shape[1] :].tolist()
    return [
        row[: next((place for place, token in enumerate(row) if token in ends), len(row))]
        for row in new
    ]


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -0.5, 2.0])
def test_ending_early_changes_no_answer(model: Any, length_penalty: float) -> None:
    batch = prompts(model, ("a", "b", "c"))
    method = decoding("beam", overrides={"num_beams": 4, "length_penalty": length_penalty})
    saved = 0
    for first in range(0, 250, 50):  # other end tokens end other answers, some of them at once
        ends = tuple(range(first, first + 20))
        with counted(model) as plainly:
            expected = plain_beam_search(model, batch, ends, length_penalty)
        with counted(model) as early:
            found = method.decode(
                model, prefilled(model, batch), Limits(LONGEST, ends), method.settings, 0
            )
        assert found == expected
        saved += plainly["calls"] - (early["calls"] - 1)  # prefilling here takes a call of its own
    assert saved >= 0


def test_a_one_word_answer_takes_few_steps(model: Any) -> None:
    """The likeliest first token ends the answer.

    Nothing else can win once its probability is near 1.
    """
    batch = prefilled(model, prompts(model, ("a",)))
    greedy = decoding("greedy")
    (answer,) = greedy.decode(model, batch, Limits(2, (10**6,)), greedy.settings, 0)
    method = decoding("beam")
    limits = Limits(LONGEST, (answer[1],))
    with torch.no_grad():
        model.lm_head.weight.mul_(3)
        with counted(model) as counts:
            assert method.decode(model, batch, limits, method.settings, 0) == [answer[:1]]
        model.lm_head.weight.div_(3)
    assert counts["calls"] <= 4


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 0.5, 1.0, 2.0])
def test_no_continuation_scores_above_what_is_attainable(length_penalty: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        logs = -torch.rand(9, generator=generator).cumsum(0) * torch.rand(1, generator=generator)
        for start in range(9):
            bound = attainable(float(logs[start]), start + 1, 9, length_penalty)
            assert all(
                float(logs[end]) / (end + 1) ** length_penalty <= bound + 1e-6
                for end in range(start, 9)
            )
