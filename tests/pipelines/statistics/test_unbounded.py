"""Intervals and tests of unbounded means, against scipy and the bounded test."""

import numpy as np
import pytest
from scipy import stats

from pipelines.statistics import paired_test
from pipelines.statistics.unbounded import mean_interval, paired_difference

pytestmark = pytest.mark.unit


def test_without_clusters_the_interval_is_student_s() -> None:
    values = np.random.default_rng(0).normal(3, 2, 25)
    found = mean_interval(values.tolist())
    low, high = stats.t.interval(0.95, 24, values.mean(), stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))


def test_equal_values_within_clusters_count_once() -> None:
    """Ten clusters of five equal values know as much as ten values."""
    values = np.random.default_rng(1).normal(size=10)
    once = mean_interval(values.tolist())
    repeated = mean_interval(np.repeat(values, 5).tolist(), np.repeat(np.arange(10), 5).tolist())
    assert repeated[:3] == pytest.approx(once[:3])
    assert (repeated.n, repeated.clusters) == (50, 10)


def test_the_interval_covers_clustered_values() -> None:
    """400 sets of 15 patients with 4 images each: a binomial 95% lies within 0.92 and 0.98."""
    random = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        patients = random.normal(size=(15, 1)) + random.normal(size=(15, 4))
        found = mean_interval(patients.ravel().tolist(), np.repeat(np.arange(15), 4).tolist())
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_p_and_difference_are_the_bounded_test_s() -> None:
    random = np.random.default_rng(3)
    a, b = (random.integers(0, 2, 60).astype(float).tolist() for _ in range(2))
    clusters = (np.arange(60) // 3).tolist()
    bounded, free = (test(a, b, clusters) for test in (paired_test, paired_difference))
    assert (free.difference, free.p) == (bounded.difference, bounded.p)
    scaled = paired_difference([100 * one - 7 for one in a], [100 * one - 7 for one in b], clusters)
    assert scaled.p == free.p
    assert scaled[:3] == pytest.approx([100 * one for one in free[:3]])


def test_interval_and_p_agree() -> None:
    random = np.random.default_rng(4)
    for shift in np.linspace(-1, 1, 21):
        apart = random.normal(shift, 1, 20)
        found = paired_difference(apart.tolist(), [0.0] * 20)
        assert (found.p <= 0.05) == (not found.low <= 0 <= found.high)


def test_values_that_say_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])
    with pytest.raises(ValueError, match="equal lengths"):
        paired_difference([1.0], [])
    alone = mean_interval([1.0, 2.0], ["a", "a"])
    assert not alone.trusted
    assert np.isinf(paired_difference([1.0, 2.0], [0.0, 0.0]).high)
