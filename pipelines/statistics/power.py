"""How large a difference a test set shows, by simulating the paired test itself.

A set drawn anew has as many clusters; the share of those whose scores differ between the methods,
and how much they differ, are as observed (Efron's bootstrap), the directions follow the difference
that is asked about. Where the observed differences are too small for it, more clusters differ.
"""

import numpy as np

from pipelines.statistics.grouping import Values

MIN_CLUSTERS = 12  # 7.9 differing ones are needed on average for six, and six for p < 0.05
POWER = 0.8
_SETS = 200  # simulated
_PATTERNS = 4999  # the smallest p is far below a corrected level
_MANY = 25  # clusters
_HALVINGS = 10


def detectable_difference(
    sums: Values, counts: Values, *, power: float = POWER, level: float = 0.05, seed: int = 0
) -> float | None:
    """Smallest mean difference that the paired test finds at `level` with `power`.

    Parameters
    ----------
    sums, counts
        Summed differences and number of items of each cluster, (C,).
    power, level
        Of the test; divide the level by the number of tests for Holm's correction of the smallest.
    seed
        Of the simulated sets.

    Returns
    -------
    The difference, or None where no difference is found that often, or clusters are under 12.
    """
    if len(sums) < MIN_CLUSTERS:
        return None
    moving = np.abs(sums[sums != 0])
    if not len(moving):
        moving = counts / counts.sum() * len(counts)  # a differing item in each that differs
    # The observed share of clusters that differ may be low by chance: two more are added.
    share = min(1.0, (np.count_nonzero(sums) + 2) / (len(sums) + 2))
    simulated = _Simulated(moving, len(sums), float(counts.sum()), share, level, seed)
    size = float(moving.mean()) / float(counts.sum())
    low, high = min(1.0, _fewest(level, power) * size), min(1.0, size * len(sums))
    if simulated.found(high) < power:
        return None
    if simulated.found(low) >= power:
        return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if simulated.found(middle) >= power else (middle, high)
    return high


def _fewest(level: float, power: float) -> float:
    """Mean number of differing clusters, all in one direction, that the test finds.

    m of them have p = 2 / 2**m; a Poisson number with this mean is at least m with `power`.
    """
    from scipy.stats import gamma

    return float(gamma.ppf(power, np.ceil(1 - np.log2(level))))


def items_needed(
    difference: float,
    disagreement: float,
    *,
    per_cluster: int = 1,
    tests: int = 1,
    power: float = POWER,
    level: float = 0.05,
    seed: int = 0,
) -> int:
    """Items that a paired test needs to find a difference between two methods.

    Parameters
    ----------
    difference
        Between the two mean scores, in (0, disagreement].
    disagreement
        Share of items on which exactly one method is right.
    per_cluster
        Questions of one image, taken to differ all or none and in one direction: the safe side.
    tests
        Of one table, under Holm's correction.
    power, level, seed
        As in `detectable_difference`.

    Returns
    -------
    The number.

    Raises
    ------
    ValueError
        The difference is not above 0 and at most the disagreement, which is at most 1.
    """
    from scipy.stats import norm

    if not 0 < difference <= disagreement <= 1:
        raise ValueError(
            "the difference lies above 0 and is at most the disagreement, which is at most 1"
        )

    level /= tests
    # R. J. Connor, Biometrics 43, 1987: exact enough where many items differ.
    tail, hit = float(norm.isf(level / 2)), float(norm.ppf(power))
    spread = disagreement - difference**2
    needed = (tail * disagreement**0.5 + hit * spread**0.5) ** 2 / difference**2
    if needed * disagreement > _MANY:
        return int(np.ceil(needed)) * per_cluster

    def enough(clusters: int) -> bool:
        simulated = _Simulated(np.ones(1), clusters, float(clusters), disagreement, level, seed)
        return simulated.found(difference) >= power

    low, high = MIN_CLUSTERS - 1, MIN_CLUSTERS
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high * per_cluster


class _Simulated:
    """Sets like the observed one, and how often the test finds a difference in them.

    Attributes
    ----------
    moving
        |sum of differences| of the clusters that differ, (M,).
    clusters, items
        Of the set.
    share
        Of clusters that differ.
    """

    def __init__(
        self, moving: Values, clusters: int, items: float, share: float, level: float, seed: int
    ) -> None:
        self.moving, self.clusters, self.items = moving, clusters, items
        self.share, self.level = share, level
        self._seed = seed

    def found(self, difference: float) -> float:
        """Share of simulated sets in which the test finds this difference."""
        generator = np.random.default_rng(self._seed)
        size = float(self.moving.mean())
        share = max(self.share, difference * self.items / (size * self.clusters))
        share = min(1.0, share)
        toward = difference * self.items / (size * self.clusters * share)  # in [0, 1]
        number = generator.binomial(self.clusters, share, size=_SETS)
        widest = max(1, int(number.max()))
        sizes = generator.choice(self.moving, size=(_SETS, widest))
        signs = np.where(generator.random((_SETS, widest)) < (1 + min(toward, 1.0)) / 2, 1.0, -1.0)
        drawn = sizes * signs * (np.arange(widest) < number[:, None])
        return float(np.mean(_p_values(drawn, generator) <= self.level))


def _p_values(drawn: Values, generator: np.random.Generator) -> Values:
    """Return the two-sided p value of each simulated set, (S, K), by the signs of its clusters.

    The sum of many random signs is normal.
    """
    from scipy.stats import norm

    observed = np.abs(drawn.sum(axis=1))
    if drawn.shape[1] > _MANY:
        error = np.sqrt((drawn**2).sum(axis=1))
        return np.asarray(2 * norm.sf(observed / np.maximum(error, 1e-300)))
    patterns = generator.integers(0, 2, size=(_PATTERNS, drawn.shape[1])) * 2.0 - 1.0
    reached = np.abs(patterns @ drawn.T) >= observed - 1e-9  # (R, S)
    return np.asarray((reached.sum(axis=0) + 1) / (_PATTERNS + 1))
