"""Paired tests against brute force, closed forms and simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.statistics import holm, paired_test
from pipelines.statistics.paired import patterns_for
from pipelines.statistics.power import MIN_CLUSTERS, detectable_difference, items_needed

pytestmark = pytest.mark.unit


def test_the_p_value_is_that_of_every_sign_pattern() -> None:
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
    test = paired_test(a, b, images)
    assert test.p == pytest.approx(expected)
    assert test.difference == pytest.approx((sum(a) - sum(b)) / 8)
    assert (test.n, test.clusters) == (8, 5)


def test_the_p_value_is_the_exact_sign_test_s() -> None:
    """Ten items differ, nine of them in one direction: 2 (1 + 10) / 2**10."""
    a = [1.0] * 9 + [0.0] + [1.0] * 5
    b = [0.0] * 9 + [1.0] + [1.0] * 5
    assert paired_test(a, b).p == pytest.approx(2 * (1 + 10) / 2**10)


def brute_interval(sums: list[float], counts: list[int]) -> tuple[float, float]:
    """Differences on a fine grid that the test of every sign pattern does not refute at 5%."""
    flips = np.array(list(itertools.product((-1.0, 1.0), repeat=len(sums))))
    kept = []
    for difference in np.linspace(-1, 1, 4001):
        residuals = np.array(sums) - difference * np.array(counts)
        statistic = np.abs(flips @ residuals)
        if np.mean(statistic >= abs(residuals.sum()) - 1e-9) > 0.05:
            kept.append(difference)
    return min(kept), max(kept)


def test_the_interval_holds_what_the_test_does_not_refute() -> None:
    """All ten clusters differ, so every pattern is drawn; the grid's step is 0.0005."""
    generator = np.random.default_rng(4)
    counts = [4, 6, 5, 7, 4, 8, 5, 6, 4, 7]
    differences = [generator.choice([-0.25, 0.25, 0.5, 0.75], size=count) for count in counts]
    sums = [float(one.sum()) for one in differences]
    assert all(sums)
    flat = np.concatenate(differences)
    names = np.repeat(np.arange(10), counts)
    test = paired_test(np.maximum(flat, 0).tolist(), np.maximum(-flat, 0).tolist(), names.tolist())
    low, high = brute_interval(sums, counts)
    # It may reach further where few items differ, never less far.
    assert test.low <= low + 0.0005
    assert test.high >= high - 0.0005
    assert test.p <= 0.05
    assert test.low == pytest.approx(low, abs=0.0006)  # toward 0 the test alone decides


@settings(deadline=None, max_examples=40)
@given(
    st.integers(2, 40).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(0, 2), min_size=n, max_size=n),
            st.lists(st.integers(0, 2), min_size=n, max_size=n),
            st.lists(st.integers(0, n), min_size=n, max_size=n),
        )
    )
)
def test_interval_and_p_never_contradict_each_other(
    drawn: tuple[list[int], list[int], list[int]],
) -> None:
    a, b, clusters = drawn
    test = paired_test([x / 2 for x in a], [x / 2 for x in b], clusters, patterns=512)
    assert (test.p > 0.05) == (test.low <= 0 <= test.high)
    assert -1 <= test.low <= test.difference <= test.high <= 1


def test_p_is_uniform_without_an_effect() -> None:
    generator = np.random.default_rng(0)
    p = np.array(
        [
            paired_test(
                generator.random(40).tolist(), generator.random(40).tolist(), patterns=400
            ).p
            for _ in range(200)
        ]
    )
    # Two standard errors of a share of 0.05 and of a uniform mean over 200 draws, and a half.
    assert np.mean(p <= 0.05) <= 0.05 + 2.5 * (0.05 * 0.95 / 200) ** 0.5
    assert abs(np.mean(p) - 0.5) <= 2.5 / (12 * 200) ** 0.5


def test_two_methods_that_agree_everywhere_may_still_differ() -> None:
    """Of 20 clusters none differs: up to 1 - 0.025**(1/20) = 16.8% of others may, either way."""
    test = paired_test([1.0, 0.0] * 10, [1.0, 0.0] * 10)
    assert (test.p, test.difference) == (1.0, 0.0)
    assert test.high == pytest.approx(1 - 0.025 ** (1 / 20), abs=1e-9)
    assert test.low == pytest.approx(-test.high, abs=1e-9)


def test_five_clusters_refute_nothing() -> None:
    test = paired_test([1.0] * 5, [0.0] * 5)
    assert test.p == 2 / 2**5
    assert test.low <= 0
    assert test.high == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_lowers_a_p_value_and_keeps_the_order(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(before <= after <= 1 for before, after in zip(p, adjusted, strict=True))
    order = sorted(range(len(p)), key=lambda i: p[i])
    assert all(adjusted[i] <= adjusted[j] for i, j in itertools.pairwise(order))


def test_the_smallest_difference_is_no_less_than_eight_images_worth() -> None:
    """Six differing clusters are needed for p < 0.05: a Poisson mean of 7.9 gives them in 80%."""
    sums, counts = np.zeros(200), np.ones(200)
    sums[:4] = [1, -1, 1, -1]
    shown = detectable_difference(sums, counts)
    assert shown is not None
    assert shown >= 7.9 / 200
    assert detectable_difference(sums[:11], counts[:11]) is None


def test_more_tests_need_a_larger_difference() -> None:
    generator = np.random.default_rng(2)
    sums = generator.choice([-1.0, 0, 0, 0, 1], size=100)
    alone = detectable_difference(sums, np.ones(100))
    corrected = detectable_difference(sums, np.ones(100), level=0.05 / 10)
    assert alone is not None
    assert corrected is not None
    assert corrected > alone


def test_items_needed_are_those_of_the_closed_form() -> None:
    """Connor 1987: (1.96 sqrt(0.2) + 0.8416 sqrt(0.2 - 0.03**2))**2 / 0.03**2 = 1741.7."""
    assert items_needed(0.03, 0.2) == 1742
    assert items_needed(0.03, 0.2, per_cluster=5) == 5 * 1742
    assert items_needed(0.03, 0.2, tests=10) > 1742
    # Few differ, all in one direction: 7.9 of them, at a share of a half about 16 items.
    assert MIN_CLUSTERS <= items_needed(0.5, 0.5) <= 18
    with pytest.raises(ValueError, match="at most the disagreement"):
        items_needed(0.3, 0.2)


def test_nothing_to_test_is_an_error() -> None:
    with pytest.raises(ValueError, match="equal lengths"):
        paired_test([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="no values"):
        paired_test([], [])
    with pytest.raises(ValueError, match="between 0 and 1"):
        paired_test([2.0], [1.0])
    with pytest.raises(ValueError, match="finite"):
        paired_test([float("nan")], [1.0])


def test_where_all_differ_one_way_p_is_two_patterns_of_all() -> None:
    """Two of 2**n patterns are as extreme, whatever the sums are in binary."""
    generator = np.random.default_rng(0)
    for _ in range(100):
        count = int(generator.integers(6, 13))
        better = 0.5 + generator.random(count) * 0.3 + 0.01
        for a, b in ((better, np.full(count, 0.5)), (np.full(count, 0.5), better)):
            assert paired_test(a.tolist(), b.tolist()).p == 2 / 2**count


def test_the_smallest_p_survives_the_correction_of_any_table() -> None:
    """Twenty clusters that all say the same, among as many tests as a table may hold."""
    for tests in (1, 200, 249, 1000):
        found = paired_test([1.0] * 20, [0.0] * 20, patterns=patterns_for(tests))
        assert holm([found.p] + [1.0] * (tests - 1))[0] < 0.05
