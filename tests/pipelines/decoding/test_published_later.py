"""SID, ICD, DeCo, VISTA and VAF against the traces that their published code left, step by step.

`golden_later.json` holds values alone, as `golden_published.json` does: what the code at the named
repository and commit chose and scored on the model of `tests/fixtures/published.py` with 32 layers,
at whose places of LLaVA-1.5 7B that code is fixed, so that its own settings could be run. It ran
under the transformers that it ships or pins (4.29 and 4.31) in float32; VISTA's rounding to half
precision was left out. Where a method draws, the likeliest token was taken. A score is a sum of
float32 logits of size 10 or so behind 32 layers: two stacks differ by some 1e-5, and 5e-4 bounds
it.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.decoding import vista
from pipelines.decoding.generation import Limits
from pipelines.decoding.methods import decoding
from tests.fixtures import published
from tests.fixtures.decoding import traced

pytestmark = pytest.mark.unit

GOLDEN = json.loads(Path(__file__).with_name("golden_later.json").read_text(encoding="utf-8"))
TOLERANCE = 5e-4


@pytest.fixture(scope="module")
def model() -> Any:
    return published.student(deep=True)


@pytest.mark.parametrize("name", GOLDEN)
def test_every_step_is_the_published_codes(model: Any, name: str) -> None:
    """By the preset `published`: what that leaves at null the code has fixed for this model."""
    golden = GOLDEN[name]
    drawn: dict[str, dict[str, object]] = {"icd": {"sample": False}, "sid sampling": {"beta": 0.1}}
    method = decoding(golden["method"], overrides=drawn.get(name, {}))
    for key, value in golden["settings"].items():
        assert getattr(method.settings, key) in (value, None)
    batch = published.asked(model)
    if name == "icd":  # the trace's other words before the image
        words = [*golden["before"], *batch.ids[0, len(published.TEXT[0]) :].tolist()]
        batch = replace(batch, reworded=(lambda instruction: torch.tensor(words),))
    steps = golden["steps"]
    answer, seen = traced(model, method, batch, Limits(len(steps), (999,)))
    assert answer == [step["token"] for step in steps]
    for ours, step in zip(seen, steps, strict=True):
        theirs = torch.tensor([-torch.inf if one is None else one for one in step["scores"]])
        assert torch.equal(ours[: published.VOCABULARY].isneginf(), theirs.isneginf())
        assert torch.allclose(ours[: published.VOCABULARY], theirs, rtol=0, atol=TOLERANCE)


def test_the_steering_vectors_are_the_published_codes(model: Any) -> None:
    """With the 1 that the code's decomposition of one difference leaves in the first number."""
    golden = torch.tensor(GOLDEN["vista"]["vector"])
    found = vista.steering_vectors(model, published.asked(model), unit_remainder=True)
    assert torch.allclose(found[:3, 0, :4], golden, rtol=0, atol=TOLERANCE)
    plain = vista.steering_vectors(model, published.asked(model), unit_remainder=False)
    assert float((found - plain)[0, 0, 0]) == pytest.approx(1.0, abs=1e-6)
    assert int(((found - plain) != 0).sum()) == 1
