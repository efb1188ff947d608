"""W: zero at the start with a gradient, Cayley is orthogonal, rows follow x' = x + W x."""

import pytest
import torch

from student_train.rotation import Rotation

pytestmark = pytest.mark.unit
KINDS = ["full", "low_rank", "orthogonal"]


def drawn(kind, width=12, rank=3, seed=0):
    rotation = Rotation(width, kind, rank)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in rotation.parameters():
            parameter.normal_(std=0.5)
    return rotation


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_moves_at_the_start_but_the_gradient_does(kind):
    """At W = 0, with G = dL/dW (out, in).

    DL/dU = G V, and for Cayley, where W = -2 A + O(A^2), -2 (G - G^T) V.
    """
    torch.manual_seed(0)
    rotation = Rotation(12, kind, 3)
    tokens, weights = torch.randn(5, 12), torch.randn(5, 12)
    assert torch.equal(rotation(tokens), tokens)
    assert not rotation.matrix().any()
    # A weighted sum, for an orthogonal map leaves the sum of squares as it is: its gradient is 0
    # and says nothing.
    (rotation(tokens) * weights).sum().backward()
    whole = weights.double().T @ tokens.double()
    if kind == "full":
        found, expected = rotation.weight.grad, whole
    else:
        asked = whole if kind == "low_rank" else -2 * (whole - whole.T)
        found, expected = rotation.u.grad, asked @ rotation.v.detach().double()
        assert not rotation.v.grad.any()  # U is still zero
    assert expected.abs().mean() > 0.1  # so that a gradient of zeros cannot pass
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_multiplied_from_the_left(kind):
    rotation = drawn(kind)
    tokens = torch.randn(4, 12)
    expected = torch.stack([(torch.eye(12) + rotation.matrix()) @ row for row in tokens])
    torch.testing.assert_close(rotation(tokens), expected, atol=1e-5, rtol=1e-4)


def test_cayley_is_orthogonal_and_the_formula():
    rotation = drawn("orthogonal")
    whole = (torch.eye(12) + rotation.matrix()).double()
    torch.testing.assert_close(whole @ whole.T, torch.eye(12).double(), atol=1e-5, rtol=0)
    skew = (rotation.u @ rotation.v.T - rotation.v @ rotation.u.T).double()
    expected = (torch.eye(12) - skew) @ torch.linalg.inv(torch.eye(12) + skew)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_parameters_stay_float32_under_bfloat16_tokens(kind):
    rotation = drawn(kind)
    out = rotation(torch.randn(4, 12, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in rotation.parameters())
