"""Paired tests of two methods over the same items, and their correction for being many.

The test exchanges the signs of whole clusters' differences: under the hypothesis that the methods
do not differ, each pattern of signs is as likely. Its interval is the test turned round: the
differences that the same test, with the same patterns, does not refute. So 0 lies outside the
interval exactly where p is at most 1 - level.

Where few items differ the signs say little about how many may: two methods that agreed on all of
20 items have no sign at all. There the interval reaches as far as that of the two shares, a better
and b better, joined by the recovery of variances (G. Y. Zou and A. Donner, Statistics in Medicine
27, 2008), unless that would contradict the test.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.statistics.grouping import Values, by_cluster
from pipelines.statistics.intervals import score_interval, within_unit
from pipelines.statistics.power import detectable_difference

PATTERNS = 4096
_ENUMERATED = 12  # 2**12 sign patterns are PATTERNS
_ROUNDING = 1e-12  # of a mean of scores in [0, 1]


class PairedTest(NamedTuple):
    """Two methods over the same items.

    Mean(a) - mean(b), its interval, the test's two-sided p value, the numbers of items and of
    clusters, and the smallest difference that such a set shows (None: it can show none).
    """

    difference: float
    low: float
    high: float
    p: float
    n: int
    clusters: int
    detectable: float | None


def paired_test(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    *,
    tests: int = 1,
    patterns: int = PATTERNS,
    seed: int = 0,
) -> PairedTest:
    """Test mean(a) = mean(b) over scores in [0, 1], by the signs of whole clusters' differences.

    Where at most 12 clusters differ at all, p is exact; else `patterns` random patterns are drawn
    and p = (k + 1) / (patterns + 1), k of them as extreme as the data.

    Parameters
    ----------
    a, b
        Scores of the same items, in the same order.
    clusters
        The image or patient of each item; None makes every item its own.
    level
        Of the interval, which reaches to -1 or 1 where no difference can be refuted.
    tests
        How many tests the smallest difference shall survive Holm's correction of.
    patterns, seed
        Random sign patterns.

    Raises
    ------
    ValueError
        Unequal lengths, no values, values outside [0, 1], or not a cluster for each.
    """
    if len(a) != len(b):
        raise ValueError(f"a paired test needs equal lengths, not {len(a)} and {len(b)}")
    first = within_unit(np.asarray(a, dtype=np.float64))
    second = within_unit(np.asarray(b, dtype=np.float64))
    sums, counts = by_cluster(first - second, clusters)
    mean, low, high, p = sign_test(sums, counts, level, patterns, seed)
    low, high = max(low, -1.0), min(high, 1.0)
    shares = _interval_of_shares(first - second, clusters, level)
    low = min(low, shares[0]) if p > 1 - level or mean < 0 else low
    high = max(high, shares[1]) if p > 1 - level or mean > 0 else high
    detectable = detectable_difference(sums, counts, level=(1 - level) / tests)
    return PairedTest(mean, low, high, p, int(counts.sum()), len(counts), detectable)


def sign_test(
    sums: Values, counts: Values, level: float, patterns: int, seed: int
) -> tuple[float, float, float, float]:
    """Test that the mean of clustered differences is 0, by their clusters' signs.

    Parameters
    ----------
    sums, counts
        Of each cluster's differences, (C,).
    level, patterns, seed
        As of `paired_test`.

    Returns
    -------
    The mean, the interval of what the test does not refute (infinite where it refutes nothing),
    and p.
    """
    smaller, larger, certain = _flipped_means(sums, counts, patterns, seed)
    mean = float(sums.sum() / counts.sum())
    beyond = np.sum(smaller <= 0) if mean >= 0 else np.sum(larger >= 0)
    total = len(smaller) + certain
    p = 1.0 if abs(mean) <= _ROUNDING else float((beyond + certain) / total)
    # A difference is refuted where at most so many drawn patterns are as extreme.
    spared = int(np.floor((1 - level) * total + 1e-9)) - certain
    if spared < 0:
        return mean, -np.inf, np.inf, p
    return mean, float(np.sort(smaller)[spared]), float(np.sort(larger)[-1 - spared]), p


def _interval_of_shares(
    differences: Values, clusters: Sequence[Hashable] | None, level: float
) -> tuple[float, float]:
    """Interval of the difference from those of its two parts, where a and where b is better."""
    better = score_interval(np.maximum(differences, 0).tolist(), clusters, level)
    worse = score_interval(np.maximum(-differences, 0).tolist(), clusters, level)
    difference = better.value - worse.value
    return (
        difference - float(np.hypot(better.value - better.low, worse.high - worse.value)),
        difference + float(np.hypot(better.high - better.value, worse.value - worse.low)),
    )


def _flipped_means(
    sums: Values, counts: Values, patterns: int, seed: int
) -> tuple[Values, Values, int]:
    """Bounds of the differences that each sign pattern speaks against.

    A pattern flips the clusters of a set A. With residuals sum_c - n_c d, its statistic is as
    extreme as the data's exactly where d lies outside of the means over A and over the others:
    at or below the smaller, or at or above the larger (J. A. Hartigan, JASA 64, 1969). The pattern
    that flips nothing is always as extreme.

    Returns
    -------
    The smaller and the larger mean of each drawn pattern, and how many patterns beside them stand
    for the data themselves.
    """
    moving = np.flatnonzero(sums)
    generator = np.random.default_rng(seed)
    exact = len(moving) <= _ENUMERATED
    flips = generator.integers(0, 2, size=(patterns, len(sums))).astype(np.float64)
    if exact:
        # Every pattern of the clusters that differ, equally often: p is exact. The others' signs
        # are random, and matter to the interval alone.
        repeats = max(1, patterns >> len(moving))
        every = np.arange(2 ** len(moving))[:, None] >> np.arange(len(moving)) & 1
        flips = np.resize(flips, (repeats * len(every), len(sums)))
        flips[:, moving] = np.tile(every, (repeats, 1))
    inside, items = flips @ sums, flips @ counts
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.stack([inside / items, (sums.sum() - inside) / (counts.sum() - items)])
    means[np.abs(means) <= _ROUNDING] = 0.0
    smaller, larger = means.min(axis=0), means.max(axis=0)
    # All or nothing flipped. Not where the means are NaN: one may be a rounding error over 0.
    unmoved = (items == 0) | (items == counts.sum())
    smaller[unmoved], larger[unmoved] = -np.inf, np.inf
    return smaller, larger, 0 if exact else 1


def patterns_for(tests: int) -> int:
    """Return how many patterns to draw for one of `tests` tests that Holm's correction joins.

    The smallest p must survive the correction: 1 in 4,097 does so among 204 tests.
    """
    return min(max(PATTERNS, 40 * tests), 16 * PATTERNS)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted: NDArray[np.float64] = np.empty(len(p_values))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return [float(p) for p in adjusted]
