"""Intervals against scipy's exact binomial interval, and against simulated truths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, t

from benchmarks.interval_coverage import COVERAGE, cells, recalls
from pipelines.statistics import score_interval

pytestmark = pytest.mark.unit


def test_independent_answers_have_the_exact_binomial_interval() -> None:
    """Half of 40 answers right: no cluster, the design effect is 1 up to the 39 in place of 40."""
    found = score_interval([1.0, 0.0] * 20)
    exact = binomtest(20, 40).proportion_ci(0.95, method="exact")
    assert found.value == 0.5
    assert found.low == pytest.approx(exact.low, abs=0.003)
    assert found.high == pytest.approx(exact.high, abs=0.003)
    assert (found.n, found.clusters) == (40, 40)


@pytest.mark.parametrize("right", [0, 20])
def test_answers_that_all_agree_have_the_exact_binomial_interval(right: int) -> None:
    found = score_interval([1.0] * right + [0.0] * (20 - right))
    exact = binomtest(right, 20).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_answers_that_all_agree_in_clusters_count_as_correlated() -> None:
    """Twenty right in ten images of two: a correlation of 0.2 makes 20 / 1.2 of them.

    Student's t turns that into 20 / 1.2 * (t(19) / t(9))^2 = 14.3.
    """
    found = score_interval([1.0] * 20, [place // 2 for place in range(20)])
    effective = 20 / 1.2 * (t.ppf(0.975, 19) / t.ppf(0.975, 9)) ** 2
    assert found.low == pytest.approx(0.025 ** (1 / effective))
    assert found.high == 1.0


def test_clusters_widen_the_interval() -> None:
    """200 images whose 5 questions always agree carry the information of 200 answers.

    To within the weight of the assumed correlation, 2 clusters of 200.
    """
    values = [float(image % 2) for image in range(200) for _ in range(5)]
    images = [image for image in range(200) for _ in range(5)]
    clustered = score_interval(values, images)
    alone = binomtest(100, 200).proportion_ci(0.95, method="exact")
    width = (clustered.high - clustered.low) / (alone.high - alone.low)
    assert width == pytest.approx(1.0, abs=0.02)
    assert clustered.clusters == 200


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (2.0, 12.0)])
def test_a_score_between_other_bounds_has_the_same_interval_stretched(
    bounds: tuple[float, float],
) -> None:
    unit = score_interval([0.1, 0.4, 0.5, 0.9] * 5)
    low, width = bounds[0], bounds[1] - bounds[0]
    found = score_interval([low + width * one for one in [0.1, 0.4, 0.5, 0.9] * 5], bounds=bounds)
    expected = [low + width * one for one in (unit.value, unit.low, unit.high)]
    assert (found.value, found.low, found.high) == pytest.approx(expected)
    assert (found.n, found.clusters) == (unit.n, unit.clusters)
    with pytest.raises(ValueError, match="between 0 and 1"):
        score_interval([low + 1.1 * width], bounds=bounds)


def test_one_cluster_says_nothing() -> None:
    found = score_interval([1.0, 0.0, 1.0], ["x"] * 3)
    assert (found.low, found.high, found.trusted) == (0.0, 1.0, False)
    assert score_interval([1.0] * 10).trusted


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), min_size=1, max_size=30),
)
def test_the_interval_lies_in_the_unit_and_around_the_mean(items: list[tuple[float, int]]) -> None:
    values, clusters = [value for value, _ in items], [name for _, name in items]
    found = score_interval(values, clusters)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.value == pytest.approx(float(np.mean(values)))


def test_a_few_simulated_sets_hold_the_truth() -> None:
    """Four standard errors of 60 sets; `make test-all` holds the promise itself."""
    slack = 4 * (COVERAGE * (1 - COVERAGE) / 60) ** 0.5
    low = [cell for cell in cells(60) if cell.n <= 50 and cell.coverage < COVERAGE - slack]
    assert not low


@pytest.mark.slow
def test_intervals_cover_and_are_not_too_wide() -> None:
    sets = 1000
    assert not [cell for cell in cells(sets) if not cell.good(sets)]
    slack = 2 * (COVERAGE * (1 - COVERAGE) / sets) ** 0.5
    assert not [one for one in recalls(sets) if one[-1] < COVERAGE - slack]


def test_nothing_to_summarise_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        score_interval([])
    with pytest.raises(ValueError, match="cluster names"):
        score_interval([1.0, 0.0], ["x"])
    with pytest.raises(ValueError, match="between 0 and 1"):
        score_interval([1.2])
    with pytest.raises(ValueError, match="finite"):
        score_interval([float("nan")])
