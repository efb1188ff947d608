"""Means of rows of scores with intervals, and paired tests of one row against another."""

from collections.abc import Iterable, Mapping
from typing import TypedDict

from pipelines.statistics import holm, paired_test, score_interval
from pipelines.statistics.paired import patterns_for
from pipelines.statistics.unbounded import mean_interval, paired_difference

Scores = Mapping[str, Mapping[str, float]]  # item -> score -> value
# Every other score lies in [0, 1].
UNBOUNDED = ("loss_vis", "loss_att", "similarity", "deletion", "insertion")


class Value(TypedDict):
    """A mean over `n` images of `patients` patients, with its interval."""

    value: float
    interval: list[float]
    n: int
    patients: int


class Test(TypedDict):
    """Row `a` less row `b` on one score, over the images that both have. `p_holm`: of the table."""

    a: str
    b: str
    score: str
    difference: float
    interval: list[float | None]
    p: float
    p_holm: float
    n: int
    patients: int


def values_of(
    rows: Mapping[str, Scores], patients: Mapping[str, str]
) -> dict[str, dict[str, Value]]:
    """Return the mean of each row on each of its scores.

    Parameters
    ----------
    rows
        By name: the scores of each item.
    patients
        Whose each item is: the clusters.
    """
    return {
        name: {score: _value(score, scores, patients) for score in _scores(scores)}
        for name, scores in rows.items()
    }


def tests_of(
    pairs: Iterable[tuple[str, str]], rows: Mapping[str, Scores], patients: Mapping[str, str]
) -> list[Test]:
    """Test each pair of rows on every score that both have, with Holm's correction over all."""
    asked = [(a, b, score) for a, b in pairs for score in _scores(rows[a])]
    patterns = patterns_for(len(asked))
    tests = [
        test
        for a, b, score in asked
        if (test := _test(a, b, score, rows, patients, patterns)) is not None
    ]
    for test, p in zip(tests, holm([one["p"] for one in tests]), strict=True):
        test["p_holm"] = p
    return tests


def _scores(scores: Scores) -> list[str]:
    return list(dict.fromkeys(name for one in scores.values() for name in one))


def _value(score: str, scores: Scores, patients: Mapping[str, str]) -> Value:
    names = [name for name, one in scores.items() if score in one]
    values = [scores[name][score] for name in names]
    clusters = [patients[name] for name in names]
    interval = (mean_interval if score in UNBOUNDED else score_interval)(values, clusters)
    return {
        "value": interval.value,
        "interval": [interval.low, interval.high],
        "n": interval.n,
        "patients": interval.clusters,
    }


def _test(
    a: str,
    b: str,
    score: str,
    rows: Mapping[str, Scores],
    patients: Mapping[str, str],
    patterns: int,
) -> Test | None:
    first, second = rows[a], rows[b]
    names = [
        name for name in first if name in second and score in first[name] and score in second[name]
    ]
    if not names:
        return None
    clusters = [patients[name] for name in names]
    own = [first[name][score] for name in names]
    other = [second[name][score] for name in names]
    test = paired_difference if score in UNBOUNDED else paired_test
    tested = test(own, other, clusters, patterns=patterns)
    ends = [end if abs(end) != float("inf") else None for end in (tested.low, tested.high)]
    return {
        "a": a,
        "b": b,
        "score": score,
        "difference": tested.difference,
        "interval": ends,
        "p": tested.p,
        "p_holm": tested.p,
        "n": tested.n,
        "patients": tested.clusters,
    }
