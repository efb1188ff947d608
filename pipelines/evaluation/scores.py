"""From answers to the result of an evaluation.

A row per method, comparisons with paired tests, and alarms.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipelines.evaluation.result import AnswerLine, Comparison, Score
from pipelines.metrics.items import SCORES
from pipelines.statistics import holm, paired_test, score_interval
from pipelines.statistics.grouping import by_cluster
from pipelines.statistics.paired import patterns_for
from pipelines.statistics.power import detectable_difference


class Row(NamedTuple):
    """One line of the table: an adapter under a decoding."""

    name: str
    adapter: str
    decoding: Mapping[str, object]  # `method` and its settings


class Scored(NamedTuple):
    """The items of a row, in the data file's order.

    Scores by name, and the cluster that each item is of.
    """

    texts: list[str]
    scores: list[dict[str, float]]
    clusters: list[str]

    @classmethod
    def of(cls, lines: Sequence[AnswerLine]) -> "Scored":
        """Take them from an answers file."""
        return cls(
            [line["prediction"] for line in lines],
            [line["scores"] for line in lines],
            [line["cluster"] for line in lines],
        )

    def at(self, places: Sequence[int]) -> "Scored":
        """Return the items at these places."""
        return Scored(
            [self.texts[place] for place in places],
            [self.scores[place] for place in places],
            [self.clusters[place] for place in places],
        )

    def column(self, name: str) -> tuple[list[float], list[str]]:
        """Return values and clusters of the items that have this score."""
        pairs = [
            (one[name], cluster)
            for one, cluster in zip(self.scores, self.clusters, strict=True)
            if name in one
        ]
        return [value for value, _ in pairs], [cluster for _, cluster in pairs]

    def names(self) -> list[str]:
        """Return the scores that any item has, in the tables' order; metrics of reports follow."""
        there = dict.fromkeys(name for one in self.scores for name in one)
        return [
            *(name for name in SCORES if name in there),
            *(name for name in there if name not in SCORES),
        ]


def summarise(scored: Scored) -> dict[str, Score]:
    """Each score's mean, its interval over clusters, and its denominator."""
    return {name: score_of(*scored.column(name)) for name in scored.names()}


def score_of(values: Sequence[float], clusters: Sequence[str]) -> Score:
    """Mean of values, its interval over clusters, and its denominator."""
    interval = score_interval(values, clusters, bounds=bounds_of(values))
    return {
        "value": interval.value,
        "interval": [interval.low, interval.high],
        "n": interval.n,
        "clusters": interval.clusters,
        "trusted": interval.trusted,
    }


def bounds_of(values: Sequence[float]) -> tuple[float, float]:
    """Return what a score can be at least and at most.

    Cosines and rescaled scores may be below 0, the others lie in [0, 1].
    """
    return (-1.0, 1.0) if min(values, default=0.0) < 0 else (0.0, 1.0)


def compare_rows(
    rows: Mapping[str, Scored], pairs: Sequence[tuple[str, str]], family: int | None = None
) -> list[Comparison]:
    """Paired tests of the first against the second row of each pair, on each score that both have.

    Holm's correction is over all of them: a table is one family, its scores included. `family` says
    how many tests the table has, where these are some of them; the caller corrects all then.
    """
    asked = asked_tests(rows, pairs)
    comparisons = [_compared(*one, rows, family or len(asked)) for one in asked]
    adjusted = holm([one["p_permutation"] for one in comparisons])
    for one, p in zip(comparisons, adjusted, strict=True):
        one["p_holm"] = p
    return comparisons


def asked_tests(
    rows: Mapping[str, Scored], pairs: Sequence[tuple[str, str]]
) -> list[tuple[str, str, str]]:
    """Return (first row, second row, score) of every test of these pairs."""
    return [
        (first, second, name)
        for first, second in pairs
        for name in rows[first].names()
        if name in rows[second].names()
    ]


def _compared(
    first: str, second: str, name: str, rows: Mapping[str, Scored], family: int
) -> Comparison:
    """Test one pair on one score, one of `family` tests; `p_holm` is that of a family of one."""
    (a, clusters), (b, _) = rows[first].column(name), rows[second].column(name)
    low, high = bounds_of([*a, *b])
    width = high - low
    test = paired_test(
        [(one - low) / width for one in a],
        [(one - low) / width for one in b],
        clusters,
        tests=family,
        patterns=patterns_for(family),
    )
    return {
        "a": first,
        "b": second,
        "score": name,
        "difference": width * test.difference,
        "interval": [width * test.low, width * test.high],
        "p_permutation": test.p,
        "n": test.n,
        "clusters": test.clusters,
        "detectable": None if test.detectable is None else width * test.detectable,
        "p_holm": test.p,
    }


def identical_outputs(rows: Mapping[str, Scored]) -> list[list[str]]:
    """Pairs of rows whose answers are byte-identical on every item.

    Two methods that do not differ at all.
    """
    return [[a, b] for a, b in itertools.combinations(rows, 2) if rows[a].texts == rows[b].texts]


def power_note(
    rows: Mapping[str, Scored], comparisons: Sequence[Comparison]
) -> dict[str, float | None]:
    """Smallest difference that this set shows with 80% power at level 0.05, for each score.

    Under Holm's correction of the table. From the paired comparisons where there are any (the
    largest of them), else for two methods that are right independently of each other. None where
    the set shows no difference at all.
    """
    found: dict[str, list[float | None]] = {}
    for one in comparisons:
        found.setdefault(one["score"], []).append(one["detectable"])
    if not comparisons:
        for scored in rows.values():
            for name in scored.names():
                found.setdefault(name, []).append(_independent(scored, name))
    return {
        name: None if None in shown else max(one for one in shown if one is not None)
        for name, shown in found.items()
    }


def _independent(scored: Scored, name: str) -> float | None:
    """Smallest difference from a method that is as good and independent of this one.

    Both scores of a cluster are drawn from those observed, so clusters are paired at random.
    """
    values, clusters = scored.column(name)
    sums, counts = by_cluster(values, clusters)
    other = np.random.default_rng(0).permutation(len(sums))
    return detectable_difference(sums - sums[other] / counts[other] * counts, counts)


def comparison_pairs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Which rows to compare: the last adapter's with those of the others.

    With one adapter, all with the first.

    Rows under the same decoding come first, since only they differ in nothing but the adapter.
    """
    mine = [row for row in rows if row.adapter == rows[-1].adapter]
    others = [row for row in rows if row.adapter != rows[-1].adapter]
    if not others:
        return [(row.name, rows[0].name) for row in rows[1:]]
    pairs = list(itertools.product(mine, others))
    # A full table has one row of the last adapter; two adapters under the same methods are compared
    # like with like.
    if len(mine) > 1:
        pairs = [(row, other) for row, other in pairs if row.decoding == other.decoding]
    pairs.sort(key=lambda pair: pair[0].decoding != pair[1].decoding)
    return [(row.name, other.name) for row, other in pairs]
