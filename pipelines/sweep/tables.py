"""What a study's finished runs say: every arm's scores, and the paired tests that it asks for.

Items of all parts are pooled: each unit (patient) is tested in one part, so parts are no
repetitions of the same items. Where an item is in several parts, such as seeds over one test set,
its scores are averaged first.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.metrics.items import SCORES
from pipelines.statistics import holm, paired_test, score_interval
from pipelines.statistics.intervals import Interval
from pipelines.statistics.paired import PairedTest
from pipelines.sweep.ledger import RunResult, read_run
from pipelines.sweep.study import Run, Study

ALL = "all"  # every kind of question together


class ArmScore(NamedTuple):
    """An arm's mean on one score, over the questions of one kind."""

    arm: str
    score: str
    kind: str
    interval: Interval


class Tested(NamedTuple):
    """The first arm of a pair less the second, over the items that both answered."""

    first: str
    second: str
    score: str
    kind: str
    test: PairedTest
    p_holm: float


class Table(NamedTuple):
    """All that a study's page shows; `finished` of `planned` runs are in it."""

    finished: int
    planned: int
    scores: list[ArmScore]
    tests: list[Tested]


Columns = Mapping[str, tuple[float, str, str]]  # item -> value, unit, kind


def table_of(study: Study, runs: Sequence[Run], results: Path) -> Table:
    """Score and test what is finished. An arm is pooled over the parts that all arms have.

    One family of tests: Holm's correction is over every pair, score and kind of the table.
    """
    found = {run: result for run in runs if (result := read_run(results, run)) is not None}
    whole = [
        part
        for part in study.parts
        if all((arm, part) in {(run.arm, run.part) for run in found} for arm in study.arms)
    ]
    arms = {
        arm: [result for run, result in found.items() if run.arm == arm and run.part in whole]
        for arm in study.arms
    }
    names = study.scores or [
        name
        for name in SCORES
        if any(name in item["scores"] for result in found.values() for item in result["items"])
    ]
    scores, tests = [], []
    for name in names:
        columns = {arm: _column(results_of, name) for arm, results_of in arms.items()}
        for kind in _kinds(columns.values()):
            chosen = {arm: _of_kind(column, kind) for arm, column in columns.items()}
            for arm, column in chosen.items():
                if column:
                    values, units, _ = zip(*column.values(), strict=True)
                    scores.append(ArmScore(arm, name, kind, score_interval(values, units)))
            for first, second in study.pairs():
                tested = _tested(chosen[first], chosen[second])
                if tested is not None:
                    tests.append(Tested(first, second, name, kind, tested, 1.0))
    adjusted = holm([one.test.p for one in tests])
    tests = [one._replace(p_holm=p) for one, p in zip(tests, adjusted, strict=True)]
    return Table(len(found), len(runs), scores, tests)


def _column(results: Sequence[RunResult], score: str) -> Columns:
    values: dict[str, list[float]] = defaultdict(list)
    about: dict[str, tuple[str, str]] = {}
    for result in results:
        for item in result["items"]:
            if score in item["scores"]:
                values[item["id"]].append(item["scores"][score])
                about[item["id"]] = (item["unit"], item["kind"])
    return {name: (sum(found) / len(found), *about[name]) for name, found in values.items()}


def _kinds(columns: Iterable[Columns]) -> list[str]:
    kinds = sorted({kind for column in columns for _, _, kind in column.values()})
    return [ALL] if len(kinds) < 2 else [ALL, *kinds]


def _of_kind(column: Columns, kind: str) -> Columns:
    return {name: row for name, row in column.items() if kind in (ALL, row[2])}


def _tested(first: Columns, second: Columns) -> PairedTest | None:
    shared = [name for name in first if name in second]
    if not shared:
        return None
    a, b = ([column[name][0] for name in shared] for column in (first, second))
    return paired_test(a, b, [first[name][1] for name in shared])


def document_of(study: Study, table: Table) -> dict[str, object]:
    """Return the table as plain values."""
    return {
        "study": study.name,
        "finished": table.finished,
        "planned": table.planned,
        "scores": [{**one._asdict(), "interval": one.interval._asdict()} for one in table.scores],
        "tests": [{**one._asdict(), "test": one.test._asdict()} for one in table.tests],
    }


def lines_of(study: Study, table: Table) -> list[str]:
    """Return the table as text of at most 80 columns."""
    lines = [study.title, f"{table.finished} of {table.planned} runs are finished", ""]
    groups = list(dict.fromkeys((one.score, one.kind) for one in table.scores))
    for score, kind in groups:
        rows = [one for one in table.scores if (one.score, one.kind) == (score, kind)]
        about = "" if kind == ALL else f", {kind}"
        n, clusters = rows[0].interval.n, rows[0].interval.clusters
        lines.append(f"{score}{about} ({n} items of {clusters} units)")
        for row in rows:
            value = row.interval
            lines.append(
                f"  {row.arm:<24} {100 * value.value:5.1f} "
                f"[{100 * value.low:.1f}, {100 * value.high:.1f}]"
            )
        for one in table.tests:
            if (one.score, one.kind) == (score, kind):
                test = one.test
                lines.append(
                    f"  {one.first} - {one.second}: {100 * test.difference:+.1f} "
                    f"[{100 * test.low:+.1f}, {100 * test.high:+.1f}], p = {test.p:.3f}, "
                    f"Holm {one.p_holm:.3f}"
                )
        lines.append("")
    return lines
