"""Softcap, sinks and windows are part of the attention that L_att reads."""

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from shared.errors import UserError
from student_train.attention import Request, question_attention
from student_train.kernel import TAPPED, AttentionCall, tap

pytestmark = pytest.mark.unit
H, T, C = 2, 6, 4


def call(**options):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (3 * torch.randn(1, H, T, C, generator=generator) for _ in range(3))
    return AttentionCall(query, key, value, None, 0.5, options.pop("window", None), **options)


def request(columns, rows):
    return Request(
        torch.tensor([0]),
        torch.tensor([columns]),
        torch.tensor([0]),
        torch.tensor([rows]),
        torch.tensor([len(rows)]),
    )


def by_hand(one, columns, row, softcap=None, sinks=None):
    found = torch.zeros(len(columns), dtype=torch.float64)
    for head in range(H):
        logits = (one.query[0, head, row].double() @ one.key[0, head, : row + 1].double().T) * 0.5
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        total = logits.exp().sum()
        if sinks is not None:
            total = total + sinks[head].double().exp()
        found += (logits.exp() / total)[columns] / H
    return found


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sinks", [None, torch.tensor([1.5, -0.5])])
def test_attention_is_of_the_models_own_distribution(softcap, sinks):
    one = call(softcap=softcap, sinks=sinks)
    found = question_attention(one, request([1, 2], [5]))[0]
    expected = by_hand(one, [1, 2], 5, softcap, sinks)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)


def test_a_window_that_ends_before_the_images_begin_is_an_error():
    assert question_attention(call(window=5), request([1, 2], [5])).shape == (1, 2)
    for window in (3, 4):  # nothing of the image, and its second patch alone
        with pytest.raises(UserError, match=r"a part of its image, or nothing.*losses.layer"):
            question_attention(call(window=window), request([1, 2], [5]))


class Attention(torch.nn.Module):
    """An attention module as transformers' are, by its configuration."""

    def __init__(self):
        super().__init__()
        from transformers import LlamaConfig

        self.config = LlamaConfig(attn_implementation="sdpa")
        self.num_key_value_groups, self.is_causal = 1, True


def test_an_option_that_nobody_knows_is_an_error():
    module, seen = Attention(), []
    tap(module, seen.append)
    one, kernel = call(), ALL_ATTENTION_FUNCTIONS[TAPPED]
    kernel(module, one.query, one.key, one.value, None, scaling=0.5, position_ids=None)
    assert len(seen) == 1
    with pytest.raises(UserError, match=r"with alibi_slopes, which the attention loss does not"):
        kernel(module, one.query, one.key, one.value, None, alibi_slopes=torch.ones(H))
