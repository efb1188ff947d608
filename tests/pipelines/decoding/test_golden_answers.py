"""Answers of every decoding method as token ids: a refactor must reproduce them.

Only answers that do not hang on a rounding error are kept: they stay when every weight of the
student moves by a ten-thousandth of itself, a thousand times what another processor's float32
arithmetic does. After a change that is meant to move the answers:
`python -m tests.pipelines.decoding.test_golden_answers` writes them anew.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.decoding.generation import Limits
from pipelines.decoding.methods import TABLE, decoding
from tests.fixtures.decoding import lively_student, prompts

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).with_name("golden_answers.json")
LIMITS, ITEMS, SEED = Limits(8, (3,)), ("a", "b", "c"), 4
STUDENTS: dict[str, dict[str, Any]] = {
    "llama, sdpa": {},
    "llama, sdpa, rotated": {"rotated": True},
    "qwen2, eager, rotated": {"rotated": True, "text": "qwen2"},
}
# name -> method, preset, overrides
CASES: dict[str, tuple[str, str, Mapping[str, Any]]] = {
    **{name: (name, "published", {}) for name in TABLE},
    **{f"{name}, equal": (name, "equal", {}) for name in ("vcd", "avisc", "m3id", "damro", "dola")},
    "damro, four patches": ("damro", "equal", {"top_k": 4}),
    "damro, zeros": ("damro", "equal", {"others": "zero", "top_k": 4}),
    "dola, normed": ("dola", "equal", {"norm_premature": True, "candidate_layers": (1, 2, 3)}),
    "opera, going back": (
        "opera",
        "published",
        {"num_beams": 2, "candidates": 2, "short_window": 1, "threshold": 1, "scale": 30.0},
    ),
    "pai, from the second token": ("pai", "published", {"boost_first": False, "start_layer": 1}),
}
# Where the likeliest token is taken, the gap to the second is a plain number.
LIKELIEST = [
    name
    for name, (method, preset, _) in CASES.items()
    if method in ("greedy", "dola", "pai") or preset == "equal"
]
Answers = dict[str, list[int]]


def student(name: str, noise: float = 0.0, seed: int = 0) -> Any:
    model = lively_student(**STUDENTS[name])
    model.set_attn_implementation("eager" if "eager" in name else "sdpa")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + noise * torch.randn(parameter.shape, generator=generator))
    return model


def answers(model: Any, case: str) -> Answers:
    name, preset, overrides = CASES[case]
    method = decoding(name, preset, overrides)
    decoded = method.decode(model, prompts(model, ITEMS), LIMITS, method.settings, SEED)
    return dict(zip(ITEMS, decoded, strict=True))


def golden() -> dict[str, dict[str, Answers]]:
    found: dict[str, dict[str, Answers]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module", params=STUDENTS)
def named(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    return request.param, student(request.param), student(request.param, 1e-4)


@pytest.mark.parametrize("case", CASES)
def test_the_golden_answers(named: tuple[str, Any, Any], case: str) -> None:
    name, model, moved = named
    expected = golden()[name][case]
    assert expected, "no answer of this method is held"
    for one in (model, moved):
        found = answers(one, case)
        assert {item: found[item] for item in expected} == expected


@pytest.mark.parametrize("case", LIKELIEST)
def test_the_likeliest_token_wins_by_far(named: tuple[str, Any, Any], case: str) -> None:
    name, model, _ = named
    expected = golden()[name][case]
    rows = [ITEMS.index(item) for item in expected]
    lengths = torch.tensor([len(expected[item]) for item in expected])
    gaps: list[Tensor] = []

    def record(ids: Tensor, scores: Tensor) -> Tensor:
        best = scores[rows].topk(2).values
        gaps.append((best[:, 0] - best[:, 1]).where(lengths > len(gaps), torch.inf))
        return scores

    own = model.generate

    def recorded(**options: Any) -> Any:
        options["logits_processor"].append(record)
        return own(**options)

    model.generate = recorded
    try:
        answers(model, case)
    finally:
        del model.generate
    assert float(torch.stack(gaps).min()) > 1e-3


def main() -> None:
    found: dict[str, dict[str, Answers]] = {}
    for name in STUDENTS:
        model, others = student(name), [student(name, 1e-4, seed) for seed in range(6)]
        found[name] = {}
        for case in CASES:
            first = answers(model, case)
            moved = [answers(other, case) for other in others]
            found[name][case] = {
                item: tokens
                for item, tokens in first.items()
                if all(other[item] == tokens for other in moved)
            }
            print(f"{name}: {case}: {len(found[name][case])} of {len(first)} held")
    rows = [
        f'  "{name}": {{\n'
        + ",\n".join(f'    "{case}": {json.dumps(found[name][case])}' for case in CASES)
        + "\n  }"
        for name in STUDENTS
    ]
    GOLDEN.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
