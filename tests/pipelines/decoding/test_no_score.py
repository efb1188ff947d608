"""Where no token, or the wrong one, is the likeliest: masks come first, and nothing is guessed."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.decoding.contrast import plausible
from pipelines.decoding.generation import Limits, checked, generate, sampler, warped
from pipelines.decoding.methods import NAMES, decoding
from shared.errors import UserError
from tests.fixtures.decoding import LIMITS, QUESTIONS, lively_student, prompts

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", NAMES)
def test_an_image_token_that_is_likeliest_bounds_nothing(name: str) -> None:
    """A head that always prefers the image token answers as one that cannot say it."""
    answers = []
    for logit in (-500.0, 500.0):
        model = lively_student()
        image = torch.tensor([model.config.image_token_id])

        def loud(
            module: Any, args: Any, output: Tensor, image: Tensor = image, logit: float = logit
        ) -> Tensor:
            return output.index_fill(-1, image, logit)

        handle = model.lm_head.register_forward_hook(loud)
        overrides = {"dola": {"candidate_layers": (1,)}}.get(name, {})
        method = decoding(name, "equal", overrides)
        answers.append(method.decode(model, prompts(model), LIMITS, method.settings, 0))
        handle.remove()
    assert answers[0] == answers[1]
    assert all(answers[0])


@pytest.mark.parametrize("name", NAMES)
def test_nan_logits_are_an_error_that_names_the_question(name: str) -> None:
    model = lively_student()
    batch = prompts(model)
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan
    method = decoding(name)
    with pytest.raises(UserError, match="'a': the model's logits leave no token to choose"):
        method.decode(model, batch, LIMITS, method.settings, 0)


@pytest.mark.parametrize("name", ["nucleus", "vcd", "avisc", "m3id", "damro"])
def test_temperature_0_is_the_likeliest_token(name: str) -> None:
    model = lively_student()
    batch = prompts(model)
    cold = decoding(name, overrides={"temperature": 0.0})
    likeliest = decoding("greedy") if name == "nucleus" else decoding(name, "equal")
    answers = cold.decode(model, batch, LIMITS, cold.settings, 5)
    assert answers == likeliest.decode(model, batch, LIMITS, likeliest.settings, 5)
    almost = decoding(name, overrides={"temperature": 1e-320})
    assert answers == almost.decode(model, batch, LIMITS, almost.settings, 5)


def test_top_p_0_keeps_the_likeliest_token() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0]])
    assert warped(scores, top_p=0.0).tolist() == [[-torch.inf, 3.0, -torch.inf]]
    model = lively_student()
    batch = prompts(model)
    narrow, greedy = decoding("nucleus", overrides={"top_p": 0.0}), decoding("greedy")
    assert narrow.decode(model, batch, LIMITS, narrow.settings, 1) == greedy.decode(
        model, batch, LIMITS, greedy.settings, 0
    )


def test_a_row_without_a_finite_score_is_an_error() -> None:
    scores = torch.tensor([[0.0, 1.0], [-torch.inf, -torch.inf]])
    for row in (-torch.inf, torch.nan, torch.inf):
        scores[1, 0] = row
        with pytest.raises(UserError, match="'b': the model's logits"):
            checked(scores, ["a", "b\x00prompt"])
    model = lively_student()

    def nothing(ids: Tensor, scores: Tensor) -> Tensor:
        return plausible(scores, scores, 2.0)  # no token is twice as likely as the likeliest

    with pytest.raises(UserError, match="leave no token to choose"):
        generate(model, prompts(model), LIMITS, [nothing])


def test_a_draw_never_takes_a_token_without_probability() -> None:
    model = lively_student()
    scores = torch.full((1, 5), -torch.inf)
    scores[0, 1] = 0.0
    for seed in range(20):
        draw = sampler(prompts(model, ("a",)), seed)
        assert int(draw(torch.zeros(1, 0, dtype=torch.long), scores).argmax()) == 1


def test_prompt_and_answer_fit_the_positions() -> None:
    model = lively_student()
    batch = prompts(model)
    length = int(batch.mask.sum(1).max())
    model.config.get_text_config().max_position_embeddings = length + 8
    greedy = decoding("greedy")
    greedy.decode(model, batch, Limits(8, (3,)), greedy.settings, 0)
    with pytest.raises(UserError, match=f"'b': {length} tokens of prompt .* --max-new-tokens 8 "):
        greedy.decode(model, batch, Limits(9, (3,)), greedy.settings, 0)


@pytest.mark.parametrize("name", NAMES)
def test_no_answer_depends_on_its_batch_where_the_pad_is_the_end_token(name: str) -> None:
    """As with HuatuoGPT-Vision, whose padding is its end token."""
    from dataclasses import replace

    model = lively_student()
    method = decoding(name)

    def answers(names: tuple[str, ...]) -> list[list[int]]:
        batch = prompts(model, names)
        end = 145  # a token that some answers say first
        padded = replace(
            batch, ids=batch.ids.where(batch.mask.bool(), torch.tensor(end)), pad_token_id=end
        )
        return method.decode(model, padded, Limits(8, (end,)), method.settings, 4)

    names = tuple(QUESTIONS)
    assert answers(names) == [answers((name,))[0] for name in names]


@pytest.mark.parametrize("overrides", [{"end_layer": 5}, {"start_layer": 3, "end_layer": 1}])
def test_pai_names_the_layers_of_the_model(overrides: dict[str, int]) -> None:
    model = lively_student()
    batch, greedy = prompts(model), decoding("greedy")
    before = greedy.decode(model, batch, LIMITS, greedy.settings, 0)
    method = decoding("pai", overrides=overrides)
    with pytest.raises(UserError, match=r"this model has layers 0\.\.3"):
        method.decode(model, batch, LIMITS, method.settings, 0)
    assert greedy.decode(model, batch, LIMITS, greedy.settings, 0) == before
    assert all(not hasattr(one.self_attn, "attention_taps") for one in model.get_decoder().layers)


def test_a_temperature_of_null_is_the_checkpoints() -> None:
    """Of `generation_config.json`, whose other sampling settings are dropped when it is loaded."""
    from types import SimpleNamespace

    from transformers import GenerationConfig

    from student_train.models.base import set_generation
    from student_train.models.templates import TEMPLATES
    from tests.fixtures.students import byte_tokenizer

    model = lively_student()
    own = decoding("nucleus", overrides={"temperature": None})
    fixed = decoding("nucleus", overrides={"temperature": 0.2})
    plain = decoding("nucleus")
    batch = prompts(model, tuple(QUESTIONS))

    def answers(method: Any) -> list[list[int]]:
        decoded: list[list[int]] = method.decode(model, batch, LIMITS, method.settings, 2)
        return decoded

    assert answers(own) == answers(plain) != answers(fixed)
    given = SimpleNamespace(
        config=model.config, generation_config=GenerationConfig(temperature=0.2, do_sample=True)
    )
    set_generation(given, byte_tokenizer(), TEMPLATES["vicuna_v1"])
    assert answers(own) == answers(fixed)
    assert own.settled(model).described() == fixed.described()
    assert fixed.settled(model) == fixed
