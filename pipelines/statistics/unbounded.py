"""Intervals and paired tests of means that have no bounds, such as losses and correlations.

The interval is Student's, with the cluster-robust variance of the mean and clusters - 1 degrees of
freedom. The paired test exchanges signs as `paired` does; its interval is the test turned round.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from pipelines.statistics.grouping import by_cluster
from pipelines.statistics.intervals import Interval
from pipelines.statistics.paired import PATTERNS, sign_test


class Difference(NamedTuple):
    """Mean(a) - mean(b) with its interval, two-sided p, and the numbers of items and clusters."""

    difference: float
    low: float
    high: float
    p: float
    n: int
    clusters: int


def mean_interval(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Interval:
    """Mean with its interval; of one cluster alone the interval has no width, and is not trusted.

    Raises
    ------
    ValueError
        No values, one that is not finite, or not a cluster for each.
    """
    from scipy.stats import t

    sums, counts = by_cluster(values, clusters)
    n, groups = counts.sum(), len(counts)
    mean = float(sums.sum() / n)
    if groups < 2:
        return Interval(mean, mean, mean, int(n), groups)
    residuals = sums - counts * mean
    variance = float((residuals**2).sum()) / n**2 * groups / (groups - 1)
    half = float(t.ppf((1 + level) / 2, groups - 1)) * variance**0.5
    return Interval(mean, mean - half, mean + half, int(n), groups)


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    *,
    patterns: int = PATTERNS,
    seed: int = 0,
) -> Difference:
    """Test mean(a) = mean(b) over items of any scale, by the signs of whole clusters' differences.

    Raises
    ------
    ValueError
        Unequal lengths, no values, one that is not finite, or not a cluster for each.
    """
    if len(a) != len(b):
        raise ValueError(f"a paired test needs equal lengths, not {len(a)} and {len(b)}")
    apart = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    sums, counts = by_cluster(apart, clusters)
    mean, low, high, p = sign_test(sums, counts, level, patterns, seed)
    return Difference(mean, low, high, p, int(counts.sum()), len(counts))
