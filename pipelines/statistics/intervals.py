"""Intervals of means that lie in [0, 1], over values in clusters.

Korn and Graubard's interval (Survey Methodology 24, 1998): the exact binomial interval of Clopper
and Pearson with the effective number of values in place of the number. The percentile bootstrap,
which is usual, covers 40 to 90% instead of 95 where sets are small, scores extreme or images
shared.

    effective n = n / deff * (t(n - 1) / t(C - 1))^2

t(f) is the 97.5% point of Student's t with f degrees of freedom, C the number of clusters, deff the
design effect: the variance of the mean over that of n independent answers of 0 or 1 with the same
mean. It is estimated from the clusters' residuals r_c = sum_c - n_c mean,

    variance = sum_c r_c^2 / (1 - n_c / n) / n^2,

and is at least 1 for answers of 0 or 1, and at least 1/4 for other scores, which vary less: a score
that was never 0 in a small set may still be so.

The estimate is worth as much as the clusters that speak: (sum r^2)^2 / sum r^4 of them, which is
about 1 where a single answer was wrong and 0 where all agree. So it is drawn towards the design
effect of a correlation of 0.2 between answers of one cluster, with the weight of two clusters.
Where all answers agree the effective n is that of this correlation alone.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from pipelines.statistics.grouping import Values, by_cluster

MIN_CLUSTERS = 10  # with fewer, no method covers
_ROUNDING = 1e-6
_CORRELATION = 0.2  # between answers of one cluster, where the data are silent
_WEIGHT = 2.0  # in clusters, of that correlation
_LEAST_EFFECT = 0.25  # of scores that are not 0 or 1


class Interval(NamedTuple):
    """A mean with its interval; `n` values over `clusters` clusters (images or patients)."""

    value: float
    low: float
    high: float
    n: int
    clusters: int

    @property
    def trusted(self) -> bool:
        """Whether there are clusters enough for an interval at all."""
        return self.clusters >= MIN_CLUSTERS


def score_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """Mean of scores in [0, 1], or between other bounds, with its interval.

    Parameters
    ----------
    values
        One score an item.
    clusters
        The image or patient of each item; None makes every item its own.
    level
        Of the interval.
    bounds
        What a score can be at least and at most, such as (-1, 1) of a cosine.

    Raises
    ------
    ValueError
        No values, values out of bounds by more than 1e-6 (a rounding), or not a cluster for each.
    """
    lowest, width = bounds[0], bounds[1] - bounds[0]
    data = within_unit((np.asarray(values, dtype=np.float64) - lowest) / width)
    sums, counts = by_cluster(data, clusters)
    n = len(data)
    mean = float(sums.sum() / n)
    residuals = sums - counts * mean
    # A cluster that holds everything has no residual, and no share to divide by.
    scaled = residuals**2 / np.maximum(1 - counts / n, 1 / n)
    least = 1.0 if np.isin(data, (0.0, 1.0)).all() else _LEAST_EFFECT
    unit = bounded_interval(mean, float(scaled.sum()) / n**2, residuals, counts, least, level)
    value, low, high = (lowest + width * one for one in unit[:3])
    return Interval(value, low, high, unit.n, unit.clusters)


def within_unit(values: Values) -> Values:
    """Return scores in [0, 1], rounding errors cut off.

    Raises
    ------
    ValueError
        One lies further outside.
    """
    if len(values) and (values.min() < -_ROUNDING or values.max() > 1 + _ROUNDING):
        raise ValueError("scores lie between 0 and 1")
    return np.clip(values, 0.0, 1.0)


def bounded_interval(
    value: float,
    variance: float,
    influences: Values,
    counts: Values,
    least_effect: float = _LEAST_EFFECT,
    level: float = 0.95,
) -> Interval:
    """Interval of any estimate in [0, 1] whose clustered variance is known.

    Parameters
    ----------
    value, variance
        The estimate and the variance of it.
    influences
        What each cluster did to it, (C,), in any unit: which clusters speak.
    counts
        Values in each cluster, (C,).
    least_effect
        The design effect is at least this.
    level
        Of the interval.
    """
    n, clusters = float(counts.sum()), len(counts)
    if clusters < 2:  # nothing says how much clusters differ
        return Interval(value, 0.0, 1.0, int(n), clusters)
    independent = value * (1 - value) / n
    squares = influences**2
    loudest = float(squares.max())
    effect, speaking = 1.0, 0.0
    if independent > 0 and loudest > 0:
        effect = max(variance / independent, least_effect)
        shares = squares / loudest
        speaking = float(shares.sum() ** 2 / (shares**2).sum())
    silent = 1 + _CORRELATION * (float((counts**2).sum()) / n - 1)
    effect = (speaking * effect + _WEIGHT * silent) / (speaking + _WEIGHT)
    low, high = korn_graubard(value, n, clusters, effect, level)
    return Interval(value, low, high, int(n), clusters)


def korn_graubard(
    value: float, n: float, clusters: int, effect: float, level: float = 0.95
) -> tuple[float, float]:
    """Interval of a share of `n` answers in clusters, whose design effect is `effect`."""
    from scipy.stats import t

    place = (1 + level) / 2
    student = float(t.ppf(place, n - 1) / t.ppf(place, clusters - 1))
    return _clopper_pearson(value, n / effect * student**2, level)


def _clopper_pearson(share: float, n: float, level: float) -> tuple[float, float]:
    """Exact binomial interval of `share` of `n`, which need not be whole."""
    from scipy.stats import beta

    tail, right = (1 - level) / 2, share * n
    low = float(beta.ppf(tail, right, n - right + 1)) if share > 0 else 0.0
    high = float(beta.ppf(1 - tail, right + 1, n - right)) if share < 1 else 1.0
    return min(low, share), max(high, share)
