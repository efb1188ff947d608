"""The tap: several listeners to one module, its own kernel underneath, every form of a mask."""

import pytest
import torch
from torch import Tensor

from student_train.kernel import AttentionCall, tap
from tests.fixtures.students import tiny_llava

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_listeners_share_a_module_and_leave_it_as_it_was(kernel: str) -> None:
    model = tiny_llava()
    model.set_attn_implementation(kernel)
    attention = model.get_decoder().layers[1].self_attn
    own, ids = attention.config, torch.arange(5, 15)[None]
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        calls: list[AttentionCall] = []

        def look(call: AttentionCall) -> None:
            calls.append(call)

        def change(call: AttentionCall) -> Tensor:
            return 3 * call.logits(2)

        first, second = tap(attention, look), tap(attention, change)
        changed = model(input_ids=ids).logits
        second()
        watched = model(input_ids=ids).logits
        first()
    assert len(calls) == 2
    assert torch.equal(watched, plain)
    assert torch.equal(changed[:, :-2], plain[:, :-2])
    assert not torch.isclose(changed[:, -2:], plain[:, -2:]).all(-1).any()
    assert attention.config is own
    assert not hasattr(attention, "attention_taps")


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("queries", [6, 2, 1])
def test_the_forms_of_a_mask_mean_the_same(queries: int, window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, queries, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, 6, 8, generator=generator).unbind(0)
    real = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    place, row = torch.arange(6), torch.arange(6 - queries, 6)[:, None]
    shown = (place <= row) & (place > row - (window or 6))
    shown = (shown & real[:, None].bool())[:, None]
    additive = torch.zeros_like(shown, dtype=torch.float32).masked_fill(~shown, -torch.inf)
    forms = [(real, window), (shown, None), (additive, None)]
    found = [
        AttentionCall(query, key, value, mask, 0.5, inside).logits(queries)
        for mask, inside in forms
    ]
    by_hand = query @ key.repeat_interleave(2, 1).transpose(2, 3) * 0.5
    by_hand = by_hand.masked_fill(~shown, -torch.inf)
    for logits in found:
        torch.testing.assert_close(logits, by_hand)
    whole = AttentionCall(query, key, value, None, 0.5, None).logits(queries)
    assert torch.equal(whole.isinf()[0, 0], place > row)
