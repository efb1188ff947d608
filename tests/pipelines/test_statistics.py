"""Intervals and tests against closed forms, brute force and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.statistics import (
    bootstrap_interval,
    detectable_difference,
    holm,
    mcnemar,
    paired_permutation,
)

pytestmark = pytest.mark.unit


def test_bootstrap_interval_matches_the_binomial_standard_error() -> None:
    values = [1.0] * 150 + [0.0] * 50
    interval = bootstrap_interval(values)
    error = 1.96 * math.sqrt(0.75 * 0.25 / 200)
    assert interval.value == 0.75
    assert interval.low == pytest.approx(0.75 - error, abs=0.01)
    assert interval.high == pytest.approx(0.75 + error, abs=0.01)
    assert (interval.n, interval.clusters) == (200, 200)


def test_clusters_widen_the_interval() -> None:
    """40 images whose 5 questions always agree carry the information of 40 answers, not of 200."""
    values = [float(image % 2) for image in range(40) for _ in range(5)]
    images = [image for image in range(40) for _ in range(5)]
    alone, clustered = bootstrap_interval(values), bootstrap_interval(values, images)
    assert (clustered.high - clustered.low) / (alone.high - alone.low) == pytest.approx(
        math.sqrt(5), rel=0.1
    )
    assert clustered.clusters == 40


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        images = np.repeat(np.arange(30), 4)
        values = (generator.normal(size=30)[images] + generator.normal(size=120)).tolist()
        interval = bootstrap_interval(values, images.tolist(), resamples=500)
        covered += interval.low <= 0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_permutation_test_equals_brute_force_over_cluster_signs() -> None:
    a = [1, 1, 0, 1, 1, 0, 1, 1]
    b = [0, 1, 0, 0, 1, 1, 0, 0]
    images = ["x", "x", "y", "y", "z", "z", "w", "v"]
    sums = [
        sum(i - j for i, j, image in zip(a, b, images, strict=True) if image == name)
        for name in "xyzwv"
    ]
    observed = abs(sum(sums))
    flips = list(itertools.product((-1, 1), repeat=5))
    expected = sum(
        abs(sum(s * f for s, f in zip(sums, flip, strict=True))) >= observed for flip in flips
    ) / len(flips)
    test = paired_permutation(a, b, images)
    assert test.p == pytest.approx(expected)
    assert test.difference == pytest.approx((sum(a) - sum(b)) / 8)
    assert (test.n, test.clusters) == (8, 5)


def test_permutation_p_is_uniform_without_an_effect() -> None:
    generator = np.random.default_rng(0)
    p = [
        paired_permutation(
            generator.normal(size=40).tolist(), generator.normal(size=40).tolist(), resamples=400
        ).p
        for _ in range(300)
    ]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(p) == pytest.approx(0.5, abs=0.06)


def test_equal_methods_have_p_one() -> None:
    test = paired_permutation([1, 0, 1], [1, 0, 1])
    assert (test.p, test.difference) == (1.0, 0.0)
    assert test.detectable > 0


def test_mcnemar_is_the_exact_binomial() -> None:
    a, b = [True] * 9 + [False] + [True] * 5, [False] * 9 + [True] + [True] * 5
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar([True], [True]) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_lowers_a_p_value_and_keeps_the_order(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(before <= after <= 1 for before, after in zip(p, adjusted, strict=True))
    order = sorted(range(len(p)), key=lambda i: p[i])
    assert all(adjusted[i] <= adjusted[j] for i, j in itertools.pairwise(order))


def test_detectable_difference_is_found_with_the_promised_power() -> None:
    generator = np.random.default_rng(1)
    base = generator.normal(size=100)
    base = (base - base.mean()) / base.std(ddof=1)
    shift = detectable_difference(base.tolist())
    found = sum(
        paired_permutation(
            (generator.normal(size=100) + shift).tolist(), [0.0] * 100, resamples=300, seed=i
        ).p
        <= 0.05
        for i in range(200)
    )
    assert found / 200 == pytest.approx(0.8, abs=0.1)


def test_nothing_to_summarise_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="equal lengths"):
        paired_permutation([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="cluster names"):
        bootstrap_interval([1.0, 0.0], ["x"])
