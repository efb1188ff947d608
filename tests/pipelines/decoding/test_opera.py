"""OPERA by the paper's rule, against a search written from its description.

The rule of the published code is held to its own trace (`test_published.py`).

One plain forward a candidate, no cache, products not logs.
"""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.decoding import opera
from pipelines.decoding.generation import Limits
from pipelines.decoding.methods import decoding
from pipelines.decoding.prefix import prefilled
from pipelines.decoding.prompts import counted
from tests.fixtures import published
from tests.fixtures.decoding import lively_student, prompts, unpadded

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "rotated"])
def model(request: pytest.FixtureRequest) -> Any:
    return lively_student(rotated=request.param)


@pytest.mark.parametrize("length_penalty", [1.0, 0.5])
def test_without_a_penalty_it_is_beam_search(model: Any, length_penalty: float) -> None:
    batch = prompts(model, ("a", "b", "c"))
    vocabulary = model.config.text_config.vocab_size
    for ends in ((3,), (3, 40, 80)):  # several end tokens: more answers end early
        limits = Limits(10, ends)
        plain = decoding("beam", overrides={"num_beams": 4, "length_penalty": length_penalty})
        overrides = {
            "penalty": 0.0,
            "candidates": vocabulary,
            "num_beams": 4,
            "length_penalty": length_penalty,
        }
        method = decoding("opera", overrides=overrides | {"threshold": 99})
        assert method.decode(model, batch, limits, method.settings, 0) == plain.decode(
            model, batch, limits, plain.settings, 0
        )


def plain_forward(model: Any, ids: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Next-token logits (V,), and the last layer's attention (T, T).

    Its largest head, rows summing to 1.
    """
    decoder, last = model.get_decoder(), model.get_decoder().layers[-1].self_attn
    with torch.no_grad():
        states: dict[str, Any] = {}
        handle = last.register_forward_pre_hook(
            lambda module, args, kwargs: states.update(kwargs), with_kwargs=True
        )
        logits = (
            model(input_ids=ids[None], pixel_values=pixels, use_cache=False).logits[0, -1].float()
        )
        handle.remove()
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        hidden = states["hidden_states"]
        shape = (1, hidden.shape[1], -1, last.head_dim)
        query, key = (
            proj(hidden).view(shape).transpose(1, 2) for proj in (last.q_proj, last.k_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *states["position_embeddings"])
        key = key.repeat_interleave(
            decoder.config.num_attention_heads // decoder.config.num_key_value_heads, 1
        )
        scores = query @ key.transpose(2, 3) * last.scaling
        scores = scores.masked_fill(
            torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), -torch.inf
        )
        largest = torch.softmax(scores, -1)[0].amax(0)
    return logits, largest / largest.sum(1, keepdim=True)


def search_by_hand(
    model: Any,
    ids: Tensor,
    pixels: Tensor,
    limits: Limits,
    settings: opera.Settings,
    log: list[int],
) -> list[int]:
    image = ids == model.config.image_token_id
    length = len(ids)
    beams: list[tuple[list[int], float, list[int]]] = [
        ([], 0.0, [])
    ]  # tokens, score, history of named columns
    finished: list[tuple[float, list[int]]] = []
    saved: dict[int, Any] = {}
    chosen: dict[int, list[tuple[int, int]]] = {}
    excluded: dict[int, set[tuple[int, int]]] = {}
    returns: Counter[int] = Counter()
    while True:
        step = len(beams[0][0])
        saved[step] = (list(beams), list(finished))
        options = []  # (score, beam, token)
        histories = []
        for number, (tokens, score, history) in enumerate(beams):
            logits, _ = plain_forward(
                model, torch.cat([ids, torch.tensor(tokens, dtype=torch.long)]), pixels
            )
            logits[model.config.image_token_id] = -torch.inf
            for beam, token in excluded.get(step, ()):
                if beam == number:
                    logits[token] = -torch.inf
            values, candidates = logits.topk(settings.candidates)
            penalised, named = [], []
            for value, token in zip(values.tolist(), candidates.tolist(), strict=True):
                _, rows = plain_forward(
                    model, torch.cat([ids, torch.tensor([*tokens, token])]), pixels
                )
                window = settings.scale * rows[length:, length:].double()
                columns = [1e-7 * float(window[j:, j].prod()) for j in range(len(window))]
                named.append(columns.index(max(columns)))
                phi = max(columns)
                if len(window) <= settings.short_window:
                    phi = -float(rows[-1, :length][image].sum())
                penalised.append(value - settings.penalty * phi)
            logs = torch.log_softmax(torch.tensor(penalised), 0).tolist()
            options += [
                (score + log_p, number, token)
                for log_p, token in zip(logs, candidates.tolist(), strict=True)
            ]
            histories.append([*history, int(torch.tensor(named).mode().values)])
        everything = torch.tensor([history[-settings.history :] for history in histories])
        common = int(everything.flatten().mode().values)
        if common >= settings.short_window and bool(
            ((everything == common).sum(1) > settings.threshold).all()
        ):
            for target in (common + 1, common):
                if target < step and returns[target] < settings.candidates:
                    break
            else:
                target = -1
            if target >= 0:
                log.append(target)
                returns[target] += 1
                excluded[target] = excluded.get(target, set()) | set(chosen[target])
                excluded = {place: pairs for place, pairs in excluded.items() if place <= target}
                beams, finished = saved[target]
                continue
        options.sort(key=lambda option: -option[0])
        running = []
        for rank, (score, number, token) in enumerate(options[: 2 * settings.num_beams]):
            tokens = [*beams[number][0], token]
            if token in limits.end_ids or len(tokens) == limits.max_new_tokens:
                if rank < settings.num_beams:
                    finished.append((score / len(tokens), tokens))
            elif len(running) < settings.num_beams:
                running.append((number, token, tokens, score))
        finished = sorted(finished, reverse=True)[: settings.num_beams]
        if not running:
            break
        chosen[step] = [(number, token) for number, token, _, _ in running]
        beams = [(tokens, score, histories[number]) for number, _, tokens, score in running]
        best = max(score for _, score, _ in beams) / (step + 1)
        if len(finished) == settings.num_beams and best <= finished[-1][0]:
            break
    best_tokens = max(finished)[1]
    return best_tokens[:-1] if best_tokens[-1] in limits.end_ids else best_tokens


CASES = {
    "as published, longer than the short window": (
        opera.Settings(num_beams=3, candidates=3, emulate_half=False, rule="paper"),
        13,
    ),
    "strong penalty": (
        opera.Settings(
            num_beams=3,
            candidates=4,
            short_window=3,
            scale=200.0,
            penalty=5.0,
            emulate_half=False,
            rule="paper",
        ),
        9,
    ),
    "going back": (
        opera.Settings(
            num_beams=2,
            candidates=2,
            short_window=1,
            threshold=1,
            scale=30.0,
            emulate_half=False,
            rule="paper",
        ),
        10,
    ),
    "going back again and again": (
        opera.Settings(
            num_beams=2,
            candidates=3,
            short_window=1,
            threshold=1,
            emulate_half=False,
            rule="paper",
        ),
        8,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_opera_by_hand(model: Any, case: str) -> None:
    settings, new_tokens = CASES[case]
    limits = Limits(new_tokens, (3, 50))
    batch = prompts(model)
    answers = opera.decode(model, batch, limits, settings, 0)
    log: list[int] = []
    for row in range(2):
        ids, pixels = unpadded(batch, row)
        assert pixels is not None
        assert answers[row] == search_by_hand(model, ids, pixels, limits, settings, log)
    if case.startswith("going back"):
        assert log, "the case should make the search go back"


def test_penalty_changes_the_answer(model: Any) -> None:
    batch, limits = prompts(model, ("a", "b", "c")), Limits(14, (3,))
    settings = opera.Settings(num_beams=3, candidates=3)
    without = opera.decode(model, batch, limits, replace(settings, penalty=0.0), 0)
    assert opera.decode(model, batch, limits, replace(settings, penalty=50.0), 0) != without


def test_all_candidates_share_one_forward_pass(model: Any) -> None:
    batch, limits = prefilled(model, prompts(model, ("a",))), Limits(9, (3,))
    with counted(model) as counts:
        opera.decode(model, batch, limits, opera.Settings(threshold=99), 0)
    assert counts["calls"] <= 10  # the prompt's last token and one a new token
    together = prefilled(model, prompts(model, ("a", "b", "c")))
    with counted(model) as counts:
        opera.decode(model, together, limits, opera.Settings(threshold=99), 0)
    assert counts["calls"] <= 10  # three items share them


def test_half_precision_is_emulated_on_request(model: Any) -> None:
    """Products of many large weights overflow in half precision.

    The search must end all the same.
    """
    batch, limits = prompts(model), Limits(16, (3,))
    settings = opera.Settings(num_beams=2, candidates=3, short_window=2, scale=4000.0)
    exact = opera.decode(model, batch, limits, replace(settings, emulate_half=False), 0)
    rounded = opera.decode(model, batch, limits, settings, 0)
    assert all(0 < len(one) <= 16 for one in (*exact, *rounded))


@pytest.mark.parametrize(("step", "position"), [(5, 3), (8, 3), (8, 6), (7, 1), (13, 6), (14, 8)])
def test_the_published_rule_forgets_from_the_end_of_its_list(step: int, position: int) -> None:
    """As github.com/shikiw/OPERA does, where a list has one place for each of the history's."""
    settings = opera.Settings(history=10)
    beams = opera.Beams(torch.zeros(2, step, dtype=torch.long), *[torch.zeros(2, step)] * 3)
    held = {place: [(0, place)] for place in range(10)}
    past = opera._Past({position: beams}, {position: []}, {position: [(1, 5)]}, held)
    search: Any = SimpleNamespace(settings=settings, past=past, position=position, beams=beams)
    opera._Search._go_back(search, position)
    gathered = [[(0, place)] for place in range(10)]
    for back in range(step + 1 - position - 2):  # the window holds the candidate too
        gathered[-(back + 1)] = []
    gathered[position + 1] = []
    gathered[position] = [*gathered[position], (1, 5)]
    assert [past.excluded.get(place, []) for place in range(10)] == gathered
    assert past.returns[position] == 1


@pytest.mark.parametrize("history", [18, 24])
def test_a_history_shorter_than_the_answer_ends_in_an_answer(history: int) -> None:
    """What is forgotten from the end of the list may be the place that the search returns to."""
    model = published.student()
    settings = opera.Settings(num_beams=2, scale=700, threshold=0, candidates=3, history=history)
    limits = Limits(34, (published.END,))
    [answer] = opera.decode(model, published.asked(model), limits, settings, 0)
    assert 0 < len(answer) <= 34
