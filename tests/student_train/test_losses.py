"""The losses against numpy, written down again from the equations, in float64, plain loops."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student_train.losses import (
    attention_alignment_loss,
    attention_alignment_terms,
    visual_alignment_loss,
    visual_alignment_terms,
)

pytestmark = pytest.mark.unit


def numpy_visual(tokens, similarity, coverage=None):
    losses = []
    for image in range(len(tokens)):
        x = tokens[image].astype(np.float64)
        n = len(x)
        full = np.eye(n)
        full[np.triu_indices(n, 1)] = similarity[image]
        full = full + full.T - np.eye(n)
        visible = [i for i in range(n) if coverage is None or coverage[image][i] > 0]
        total = 0.0
        for i in visible:
            for j in visible:
                cosine = x[i] @ x[j] / np.sqrt((x[i] @ x[i]) * (x[j] @ x[j]))
                if i != j:
                    total += (full[i, j] - cosine) ** 2
        losses.append(total / len(visible) ** 2)
    return np.mean(losses)


def numpy_attention(student, teacher, normalization, coverage=None):
    losses = []
    for image in range(len(student)):
        keep = slice(None) if coverage is None else coverage[image] > 0
        p, q = student[image].astype(np.float64)[keep], teacher[image].astype(np.float64)[keep]
        scale = 1.0
        if normalization == "renormalized":
            p, q = p / p.sum(), q / q.sum()
        elif normalization == "softmax":
            q = q / q.max()
            p, q = np.exp(p) / np.exp(p).sum(), np.exp(q) / np.exp(q).sum()
        else:
            p, q, scale = p / np.sqrt((p**2).sum()), q / np.sqrt((q**2).sum()), 1 / len(p)
        losses.append(scale * sum(b * np.log(b / a) for a, b in zip(p, q, strict=True) if b > 0))
    return np.mean(losses)


def case(seed, images=3, patches=7, width=5):
    random = np.random.default_rng(seed)
    tokens = random.normal(size=(images, patches, width)).astype(np.float32)
    similarity = random.uniform(-1, 1, (images, patches * (patches - 1) // 2)).astype(np.float32)
    student = random.dirichlet(np.ones(patches), images).astype(np.float32) * 0.3
    teacher = random.dirichlet(np.ones(patches), images).astype(np.float32) * 0.8
    coverage = random.integers(0, 3, (images, patches)).astype(np.uint8)
    coverage[:, :2] = 255
    return tokens, similarity, student, teacher, coverage


def tensor(array: Any) -> Any:
    return None if array is None else torch.from_numpy(np.asarray(array))


def tensors(*arrays: Any) -> Any:
    return [tensor(array) for array in arrays]


@pytest.mark.parametrize("masked", [False, True])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), patches=st.integers(2, 12))
def test_visual_loss_is_the_equation(masked, seed, patches):
    tokens, similarity, _, _, coverage = case(seed, patches=patches)
    cover = coverage if masked else None
    found = visual_alignment_loss(*tensors(tokens, similarity, cover))
    assert float(found) == pytest.approx(
        numpy_visual(tokens, similarity, cover), rel=1e-4, abs=1e-6
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("normalization", ["renormalized", "softmax", "l2"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_attention_loss_is_the_equation(normalization, masked, seed):
    _, _, student, teacher, coverage = case(seed)
    cover = coverage if masked else None
    found = attention_alignment_loss(tensor(student), tensor(teacher), normalization, tensor(cover))
    assert float(found) == pytest.approx(
        numpy_attention(student, teacher, normalization, cover), rel=1e-4, abs=1e-6
    )


def test_full_matrix_mean_equals_the_triangle():
    tokens, similarity, *_ = case(0, images=1)
    unit = torch.nn.functional.normalize(torch.from_numpy(tokens[0]), dim=-1)
    full = torch.eye(7)
    rows, columns = torch.triu_indices(7, 7, 1)
    full[rows, columns] = full[columns, rows] = torch.from_numpy(similarity[0])
    expected = (full - unit @ unit.T).square().mean()
    torch.testing.assert_close(visual_alignment_loss(*tensors(tokens, similarity)), expected)


def test_half_precision_targets_and_means_over_images():
    tokens, similarity, student, teacher, coverage = case(1)
    terms = visual_alignment_terms(*tensors(tokens, similarity.astype(np.float16), coverage))
    torch.testing.assert_close(
        terms.mean(),
        visual_alignment_loss(*tensors(tokens, similarity, coverage)),
        atol=1e-3,
        rtol=1e-3,
    )
    parts = attention_alignment_terms(
        tensor(student), tensor(teacher), "renormalized", tensor(coverage)
    )
    torch.testing.assert_close(
        parts.mean(),
        attention_alignment_loss(
            tensor(student), tensor(teacher), "renormalized", tensor(coverage)
        ),
    )


def test_masked_patches_have_no_say():
    tokens, similarity, student, teacher, coverage = case(2)
    other = tokens.copy()
    other[coverage == 0] = 9.0
    assert visual_alignment_loss(*tensors(tokens, similarity, coverage)) == visual_alignment_loss(
        *tensors(other, similarity, coverage)
    )
    louder = student.copy()
    louder[coverage == 0] = 5.0
    for normalization in ("renormalized", "softmax", "l2"):
        first = attention_alignment_loss(
            tensor(student), tensor(teacher), normalization, tensor(coverage)
        )
        torch.testing.assert_close(
            first,
            attention_alignment_loss(
                tensor(louder), tensor(teacher), normalization, tensor(coverage)
            ),
        )


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_renormalized_is_a_divergence(seed):
    _, _, student, teacher, _ = case(seed, images=1)
    assert attention_alignment_loss(tensor(student), tensor(teacher)) >= 0
    assert attention_alignment_loss(*tensors(teacher * 3, teacher)) == pytest.approx(0, abs=1e-6)


def test_the_optimum_of_l2_is_the_square_root_of_the_teacher():
    _, _, _, teacher, _ = case(3, images=1)
    logits = torch.zeros(1, 7, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(1500):
        optimizer.zero_grad()
        attention_alignment_loss(logits.softmax(1), torch.from_numpy(teacher), "l2").backward()
        optimizer.step()
    found = logits.softmax(1).detach()
    expected = torch.from_numpy(teacher).sqrt()
    torch.testing.assert_close(found, expected / expected.sum(), atol=1e-3, rtol=1e-2)
    assert attention_alignment_loss(found, torch.from_numpy(teacher), "l2") < 0


def test_zeros_and_flat_attention_stay_finite():
    teacher = torch.tensor([[0.0, 0.5, 0.5]])
    student = torch.tensor([[0.2, 0.0, 0.8]], requires_grad=True)
    for normalization in ("renormalized", "softmax", "l2"):
        loss = attention_alignment_loss(student, teacher, normalization)
        loss.backward()
        assert torch.isfinite(loss)
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()


def test_a_triangle_of_another_grid_is_refused():
    with pytest.raises(ValueError, match="7 patches have 21 pairs, but the targets hold 15"):
        visual_alignment_loss(torch.zeros(1, 7, 4), torch.zeros(1, 15))


def test_an_unknown_normalization_is_refused():
    with pytest.raises((ValueError, TypeError)):  # the annotation's own check may come first
        attention_alignment_terms(torch.ones(1, 3), torch.ones(1, 3), cast("Any", "sum"))
