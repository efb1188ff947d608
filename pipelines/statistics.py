"""Intervals, paired tests and their correction.

Questions about one image are not independent, so images are drawn.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
_EXACT_CLUSTERS = 12  # 2**12 sign patterns are fewer than RESAMPLES would draw


class Interval(NamedTuple):
    """A mean with its percentile bootstrap interval; `n` values over `clusters` images."""

    value: float
    low: float
    high: float
    n: int
    clusters: int


def bootstrap_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of `values` with a percentile bootstrap interval that resamples whole clusters (images).

    `clusters` gives the image of each value; None makes every value its own. Raises ValueError
    where there is none.
    """
    sums, counts = _by_cluster(values, clusters)
    weights = _multiplicities(len(sums), resamples, seed)
    means = (weights @ sums) / (weights @ counts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        float(sums.sum() / counts.sum()), float(low), float(high), len(values), len(sums)
    )


class PairedTest(NamedTuple):
    """Two methods over the same items.

    Mean(a) - mean(b), its interval and the test's two-sided p value.
    """

    difference: float
    low: float
    high: float
    p: float
    n: int
    clusters: int
    detectable: float


def paired_permutation(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedTest:
    """Paired permutation test of mean(a) = mean(b).

    The signs of whole clusters' differences are exchanged.

    All 2**C sign patterns where C <= 12 clusters differ at all, else `resamples` random ones and p
    = (k + 1) / (R + 1).
    """
    if len(a) != len(b):
        raise ValueError(f"a paired test needs equal lengths, not {len(a)} and {len(b)}")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    sums, _ = _by_cluster(differences, clusters)
    observed = abs(sums.sum())
    moving = sums[sums != 0]
    if len(moving) <= _EXACT_CLUSTERS:
        patterns = np.arange(2 ** len(moving))[:, None] >> np.arange(len(moving)) & 1
        p = float(np.mean(np.abs((2 * patterns - 1) @ moving) >= observed - 1e-9))
    else:
        signs = np.random.default_rng(seed).integers(0, 2, size=(resamples, len(moving))) * 2 - 1
        p = float((np.sum(np.abs(signs @ moving) >= observed - 1e-9) + 1) / (resamples + 1))
    interval = bootstrap_interval(differences.tolist(), clusters, resamples=resamples, seed=seed)
    detectable = detectable_difference(differences.tolist(), clusters)
    return PairedTest(
        interval.value, interval.low, interval.high, p, interval.n, interval.clusters, detectable
    )


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided McNemar p value (binomial).

    Of two methods' right and wrong answers to the same items.
    """
    from scipy.stats import binomtest

    if len(a) != len(b):
        raise ValueError(f"a paired test needs equal lengths, not {len(a)} and {len(b)}")
    only_a = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    only_b = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    discordant = only_a + only_b
    return float(binomtest(only_a, discordant, 0.5).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return [float(p) for p in adjusted]


def detectable_difference(
    differences: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    power: float = 0.8,
    level: float = 0.05,
) -> float:
    """Smallest mean difference that a two-sided test at `level` finds with `power`.

    It follows from the clustered standard error, that of the ratio estimator:
    sqrt(C / (C - 1) sum_c (d_c - n_c mean)^2) / n. Two methods that (nearly) always agree make it
    0, which says nothing about the set: then the error of one differing cluster is used.
    """
    from scipy.stats import norm

    sums, counts = _by_cluster(differences, clusters)
    n, images = counts.sum(), len(sums)
    if images < 2:
        return float("inf")
    residuals = sums - counts * sums.sum() / n
    error = float(np.sqrt(images / (images - 1) * np.sum(residuals**2)) / n)
    error = max(error, float(np.mean(counts) / n))
    return float((norm.ppf(1 - level / 2) + norm.ppf(power)) * error)


def _by_cluster(
    values: Sequence[float] | NDArray[np.float64], clusters: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and count of the values of each cluster, in order of first appearance.

    Both float64 (C,).
    """
    if len(values) == 0:
        raise ValueError("no values to summarise")
    if clusters is None:
        return np.asarray(values, dtype=np.float64), np.ones(len(values))
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} values but {len(clusters)} cluster names")
    number: dict[Hashable, int] = {}
    rows = np.array([number.setdefault(cluster, len(number)) for cluster in clusters])
    sums = np.bincount(rows, weights=np.asarray(values, dtype=np.float64)).astype(np.float64)
    return sums, np.bincount(rows).astype(np.float64)


def _multiplicities(clusters: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each bootstrap resample draws each cluster, (resamples, clusters)."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples).astype(
        np.float64
    )
