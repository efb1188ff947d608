"""The basis of the queries: the list of terms, its directions, and what lies outside of them."""

import numpy as np
import pytest
import torch

from shared.errors import UserError
from shared.targets.numbers.query import basis_of as stored
from teacher_cache.teachers.base import TextTower
from teacher_cache.texts.basis import basis_in, basis_of, provenance_of, residuals, terms

pytestmark = pytest.mark.unit


def vectors(count=300, width=24, rank=10):
    random = np.random.default_rng(0)
    found = (
        random.normal(size=(count, rank))
        * 2.0 ** -np.arange(rank)
        @ random.normal(size=(rank, width))
    )
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_the_list_is_of_normal_prompts():
    version, prompts = terms()
    assert version == 1
    assert len(set(prompts)) == len(prompts) > 1000
    assert prompts == [" ".join(one.lower().split()) for one in prompts]
    assert {"opacity in the left lung", "glioma on brain mri", "liver on abdominal ct"} <= set(
        prompts
    )


def test_the_residual_is_the_energy_of_the_singular_values_left_out():
    given = vectors()
    found = basis_in(given, 6)
    values = np.linalg.svd(given, compute_uv=False)
    # float16 turns the basis by 2^-11 at most, which moves the energy by its square.
    assert found.residual == pytest.approx((values[6:] ** 2).sum() / len(given), abs=1e-5)
    assert residuals(basis_in(given, 10).matrix, given).max() < 1e-5


def test_signs_do_not_hang_on_the_library():
    given = vectors()
    first = basis_in(given, 6).matrix
    order = np.random.default_rng(1).permutation(len(given))
    second = basis_in(given[order], 6).matrix
    np.testing.assert_allclose(first, second, atol=2**-10)
    assert (first[np.abs(first).argmax(axis=0), np.arange(6)] > 0).all()


def test_the_basis_comes_back_from_the_provenance():
    found = basis_in(vectors(), 6)
    np.testing.assert_array_equal(stored({"query": provenance_of(found)}), found.matrix)


def test_a_rank_above_the_width_is_refused():
    tower = TextTower("t", "a", "0" * 64, 24, lambda texts: torch.zeros(len(texts), 1))
    with pytest.raises(UserError, match="--query-rank 25: the text tower of t has at most 24"):
        basis_of(tower, 25)
