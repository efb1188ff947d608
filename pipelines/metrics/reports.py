"""Report metrics over a file of predictions.

Each computed where it can be, cached, summarised with an interval.
"""

import hashlib
import json
import sqlite3
from collections.abc import Hashable, Mapping, Sequence
from contextlib import closing
from importlib import import_module
from typing import NamedTuple, cast

import numpy as np

from pipelines.metrics.metric import (
    NAMES,
    Metric,
    MetricScore,
    MetricScores,
    Pair,
    Total,
    Unavailable,
    Value,
)
from pipelines.statistics import score_interval
from pipelines.statistics.grouping import numbered
from pipelines.statistics.intervals import bounded_interval
from shared.errors import UserError
from shared.files import cache_directory


class ReportValues(NamedTuple):
    """Metrics report by report.

    Attributes
    ----------
    columns
        The values of each score, one a report.
    what
        What each score is, in words.
    totals
        Scores of the whole set, with the values that they count.
    missing
        How to get the metrics that could not be computed, by metric.
    versions
        By metric.
    """

    columns: dict[str, list[float]]
    what: dict[str, str]
    totals: dict[str, tuple[Total, list[Value]]]
    missing: dict[str, str]
    versions: dict[str, str]

    def items(self, count: int) -> list[dict[str, float]]:
        """Return the scores of each of `count` reports."""
        return [
            {name: column[place] for name, column in self.columns.items()} for place in range(count)
        ]


def report_values(
    pairs: Sequence[Pair],
    names: Sequence[str] = NAMES,
    models: Mapping[str, str] | None = None,
) -> ReportValues:
    """Compute report metrics, report by report.

    Parameters
    ----------
    pairs
        References and predictions, one a report.
    names
        Of `metric.NAMES`.
    models
        Where the models are, by name of `metric.MODELS`; nothing that is not named is downloaded.
    """
    if not pairs:
        raise UserError("there are no reports to score")
    found = ReportValues({}, {}, {}, {}, {})
    for name in names:
        try:
            metric: Metric = import_module(f"pipelines.metrics.{name}").load(models or {})
        except Unavailable as reason:
            found.missing[name] = str(reason)
            continue
        values = cached(metric, pairs)
        found.versions[name] = metric.version
        for score, what in metric.scores.items():
            found.columns[score] = [cast("float", value[score]) for value in values]
            found.what[score] = what
        for score, total in metric.totals.items():
            found.totals[score] = (total, values)
    return found


def score_reports(
    pairs: Sequence[Pair],
    clusters: Sequence[Hashable] | None = None,
    names: Sequence[str] = NAMES,
    models: Mapping[str, str] | None = None,
) -> MetricScores:
    """Compute report metrics and summarise them over the clusters; see `report_values`."""
    return summarised(report_values(pairs, names, models), clusters)


def summarised(found: ReportValues, clusters: Sequence[Hashable] | None) -> MetricScores:
    """Return the mean of every score, and the totals, with their intervals.

    `clusters` names the image or patient of each report.
    """
    scores: dict[str, MetricScore] = {}
    for score, column in found.columns.items():
        # Cosines and rescaled scores may be below 0; the others lie in [0, 1].
        bounds = (-1.0, 1.0) if min(column) < 0 else (0.0, 1.0)
        interval = score_interval(column, clusters, bounds=bounds)
        scores[score] = {
            "what": found.what[score],
            "value": interval.value,
            "interval": [interval.low, interval.high],
            "n": interval.n,
            "clusters": interval.clusters,
            "trusted": interval.trusted,
        }
    for score, (total, values) in found.totals.items():
        scores[score] = summed(values, total, clusters)
    return {"scores": scores, "not_computed": found.missing, "versions": found.versions}


def cached(metric: Metric, pairs: Sequence[Pair]) -> list[Value]:
    """Return the metric's values, computing only pairs that this version has not seen.

    The cache (`report-metrics.sqlite` in the user's cache directory) holds hashes and values, no
    text.
    """
    keys = [_key(metric.version, pair) for pair in pairs]
    folder = cache_directory()
    folder.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(folder / "report-metrics.sqlite", timeout=60)) as store:
        store.execute(
            "CREATE TABLE IF NOT EXISTS value (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
        )
        known: dict[str, Value] = {}
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            rows = store.execute(f"SELECT key, value FROM value WHERE key IN ({marks})", part)
            known |= {key: json.loads(value) for key, value in rows}
        todo = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}
        if todo:
            values = metric.compute(list(todo.values()))
            new = dict(zip(todo, values, strict=True))
            with store:
                rows_in = [(key, json.dumps(value)) for key, value in new.items()]
                store.executemany("INSERT OR REPLACE INTO value VALUES (?, ?)", rows_in)
            known |= new
    return [known[key] for key in keys]


def _key(version: str, pair: Pair) -> str:
    return hashlib.sha256(json.dumps([version, *pair]).encode()).hexdigest()


def summed(
    values: Sequence[Value], total: Total, clusters: Sequence[Hashable] | None
) -> MetricScore:
    """Return a score over counts summed over the reports, with its interval.

    Its variance is the jackknife's, a cluster left out at a time.
    """
    counts = np.asarray([total.tally(value) for value in values], dtype=np.float64)  # (R, L, K)
    rows = numbered(range(len(values)) if clusters is None else clusters)
    sizes = np.bincount(rows).astype(np.float64)
    grouped = np.zeros((len(sizes), *counts.shape[1:]))
    np.add.at(grouped, rows, counts)
    whole = grouped.sum(axis=0)
    without = total.score(whole - grouped)  # (C,)
    influences = without.mean() - without
    variance = (len(sizes) - 1) / len(sizes) * float(np.sum(influences**2))
    interval = bounded_interval(float(total.score(whole)), variance, influences, sizes)
    return {
        "what": total.what,
        "value": interval.value,
        "interval": [interval.low, interval.high],
        "n": interval.n,
        "clusters": interval.clusters,
        "trusted": interval.trusted,
    }
