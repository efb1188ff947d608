"""Every method against the trace that its published code left on the same weights, step by step.

`golden_published.json` holds values alone: what the code at the named repository and commit chose
and scored on the model of `tests/fixtures/published.py`, drawn anew there under transformers 4.37
in float32. Where a method draws, the likeliest token was taken. A score is a sum of float32 logits
of size 10 or so, weighted by up to 3: two stacks differ by some 1e-5, and 5e-4 bounds it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.decoding import opera
from pipelines.decoding.generation import Limits
from pipelines.decoding.methods import decoding
from tests.fixtures import published
from tests.fixtures.decoding import traced

pytestmark = pytest.mark.unit

GOLDEN = json.loads(Path(__file__).with_name("golden_published.json").read_text(encoding="utf-8"))
TOLERANCE = 5e-4
ONE_PASS = [name for name in GOLDEN if name != "opera"]


@pytest.fixture(scope="module")
def model() -> Any:
    return published.student()


@pytest.mark.parametrize("name", ONE_PASS)
def test_every_step_is_the_published_codes(
    model: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = GOLDEN[name]
    settings = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in golden["settings"].items()
    }
    if name == "vcd":  # the noise of the trace, whose generator is another
        noise = torch.from_numpy(published.drawn("noise", shape=(1, 3, 48, 48))).float()[0]
        monkeypatch.setattr(torch, "randn", lambda *size, **options: noise)
    sample = {} if name in ("dola", "pai") else {"sample": False}
    method = decoding(name, overrides=settings | sample)
    steps = golden["steps"]
    batch = published.asked(model, image=name != "dola")
    answer, seen = traced(model, method, batch, Limits(len(steps), (999,)))
    assert answer == [step["token"] for step in steps]
    for ours, step in zip(seen, steps, strict=True):
        theirs = torch.tensor([-torch.inf if one is None else one for one in step["scores"]])
        assert torch.equal(ours[: published.VOCABULARY].isneginf(), theirs.isneginf())
        assert torch.allclose(ours[: published.VOCABULARY], theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("number", range(len(GOLDEN["opera"]["traces"])))
def test_every_move_of_opera_is_the_published_codes(
    model: Any, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = GOLDEN["opera"]["traces"][number]
    moves: list[dict[str, Any]] = []

    def note(search: Any) -> None:
        moves.append(
            {
                "step": search.beams.tokens.shape[1] - 1,
                "tokens": search.beams.tokens[:, -1].tolist(),
                "scores": search.beams.scores.tolist(),
            }
        )

    advance, choose = opera._Search.advance, opera._Search.choose_anew

    def advanced(self: Any, *given: Any) -> Any:
        move = advance(self, *given)
        if move == "on":
            note(self)
        return move

    def chosen(self: Any, logits: Tensor) -> Tensor:
        tokens = choose(self, logits)
        note(self)
        return tokens

    monkeypatch.setattr(opera._Search, "advance", advanced)
    monkeypatch.setattr(opera._Search, "choose_anew", chosen)
    settings = opera.Settings(**golden["settings"])
    batch = published.asked(model)
    limits = Limits(golden["new"], (published.END,))
    [answer] = opera.decode(model, batch, limits, settings, 0)
    for ours, theirs in zip(moves, golden["steps"], strict=False):
        assert ours["step"] == theirs["step"]
        assert ours["tokens"] == theirs["tokens"]
        assert ours["scores"] == pytest.approx(theirs["scores"], abs=5e-3)
    assert len(moves) >= len(golden["steps"]) - 1  # the last ends all beams
    ended = golden["answer"]
    assert answer == (ended[: ended.index(published.END)] if published.END in ended else ended)
