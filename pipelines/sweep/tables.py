"""What a study's finished runs say: every arm's scores, and the paired tests that it asks for.

Items of all parts are pooled: each unit (patient) is tested in one part, so parts are no
repetitions of the same items. Where an item is in several parts, such as seeds over one test set,
its scores are averaged first. Parts that are data sets of their own (`sets: true`) have a table
each, for their items share names without being the same. Beside the scores of answers stand those
of alignment, where the study measures it (`after: {alignment: medalign alignment ...}`), with the
start as a row.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from pipelines.metrics.items import SCORES
from pipelines.regions.measuring import BEFORE, Alignment
from pipelines.regions.scoring import UNBOUNDED
from pipelines.regions.table import TITLES
from pipelines.statistics import holm, paired_test, score_interval
from pipelines.statistics.intervals import Interval
from pipelines.statistics.paired import PairedTest, patterns_for
from pipelines.statistics.unbounded import Difference, mean_interval, paired_difference
from pipelines.sweep.ledger import RunResult, read_run
from pipelines.sweep.study import Run, Study
from shared.errors import UserError

ALL = "all"  # every kind of question together
ALIGNMENT = "alignment"  # the measurement `after` a run whose items are tabled


class ArmScore(NamedTuple):
    """An arm's mean on one score, over the questions of one kind.

    `parts` are those that it is finished in; `set` the data set where parts are sets, else empty.
    """

    arm: str
    score: str
    kind: str
    interval: Interval
    parts: tuple[str, ...]
    set: str = ""


class Tested(NamedTuple):
    """The first arm of a pair less the second, over the items that both answered."""

    first: str
    second: str
    score: str
    kind: str
    test: PairedTest | Difference
    p_holm: float
    set: str = ""


class Table(NamedTuple):
    """All that a study's page shows; `finished` of `planned` runs are in it."""

    finished: int
    planned: int
    scores: list[ArmScore]
    tests: list[Tested]


class Cell(NamedTuple):
    """One item's value on a score, its unit and its kind."""

    value: float
    unit: str
    kind: str


Column = Mapping[str, Cell]  # by item
Pair = tuple[list[float], list[float], list[str]]  # values of two arms, and units
Finished = Mapping[str, Mapping[str, RunResult]]  # by arm and part


class _Asked(NamedTuple):
    """A pair of arms to test."""

    first: str
    second: str
    score: str
    kind: str
    set: str
    pair: Pair


def table_of(study: Study, runs: Sequence[Run], results: Path) -> Table:
    """Score and test what is finished.

    Arms are compared over the parts in which both are finished. One family of tests: Holm's
    correction is over every pair, score, kind and set of the table.

    Raises
    ------
    UserError
        An item is of one unit in one part and of another in the next: the parts are sets.
    """
    found: dict[str, dict[str, RunResult]] = {arm: {} for arm in study.arms}
    for run in runs:
        result = read_run(results, run)
        if result is not None:
            found[run.arm][run.part] = result
    scores: list[ArmScore] = []
    asked: list[_Asked] = []
    for set_, own in _sets(study, found).items():
        more, pairs = _scored(study, own, set_)
        scores += more
        asked += pairs
    patterns = patterns_for(len(asked))
    tests = [
        Tested(*one[:4], _tested(one.score, one.pair, patterns), 1.0, one.set) for one in asked
    ]
    adjusted = holm([one.test.p for one in tests])
    tests = [one._replace(p_holm=p) for one, p in zip(tests, adjusted, strict=True)]
    finished = sum(len(parts) for parts in found.values())
    return Table(finished, len(runs), scores, tests)


def _sets(study: Study, found: Finished) -> dict[str, Finished]:
    """Return what is tabled together: everything under the name "", or each set by itself."""
    if not study.sets:
        return {"": found}
    return {
        part: {
            arm: {name: result for name, result in parts.items() if name == part}
            for arm, parts in found.items()
        }
        for part in study.parts
    }


def _scored(study: Study, found: Finished, set_: str) -> tuple[list[ArmScore], list[_Asked]]:
    """Return the scores of every arm, and the pairs to test."""
    scores: list[ArmScore] = []
    asked: list[_Asked] = []
    done = {arm: tuple(parts) for arm, parts in found.items()}
    for name in _names(study, found):
        columns = {arm: _column(parts.values(), name) for arm, parts in found.items()}
        start = _start(found, name)
        if start:
            columns[BEFORE] = start
        for kind in _kinds(columns.values()):
            chosen = {
                arm: {item: cell for item, cell in column.items() if kind in (ALL, cell.kind)}
                for arm, column in columns.items()
            }
            scores += [
                ArmScore(arm, name, kind, _interval(name, column), done.get(arm, ()), set_)
                for arm, column in chosen.items()
                if column
            ]
            pairs = study.pairs() + [(arm, BEFORE) for arm in study.arms if start]
            for first, second in pairs:
                pair = _pair(chosen[first], chosen[second])
                if pair is not None:
                    asked.append(_Asked(first, second, name, kind, set_, pair))
    return scores, asked


def _names(study: Study, found: Finished) -> list[str]:
    """Return the scores of answers that the study tests, then those of alignment."""
    results = [result for parts in found.values() for result in parts.values()]
    there = {name for result in results for item in result["items"] for name in item["scores"]}
    aligned = {
        name
        for result in results
        for scores in _aligned(result, None).values()
        for name in scores[1]
    }
    answers = study.scores or [name for name in SCORES if name in there]
    return [*answers, *(name for name in TITLES if name in aligned)]


def _aligned(result: RunResult, row: str | None) -> dict[str, tuple[str, dict[str, float]]]:
    """Return unit and scores of each image in a row of the run's alignment; None: the arm's."""
    document = result["after"].get(ALIGNMENT)
    if document is None:
        return {}
    alignment = cast("Alignment", document)
    name = alignment["arms"][-1] if row is None else row
    return {
        str(item["id"]): (str(item["unit"]), scores[name])
        for item in alignment["items"]
        if name in (scores := cast("dict[str, dict[str, float]]", item["scores"]))
    }


def _column(results: Iterable[RunResult], score: str, row: str | None = None) -> Column:
    values: dict[str, list[float]] = defaultdict(list)
    about: dict[str, tuple[str, str]] = {}
    for result in results:
        if score in TITLES:
            for name, (unit, scores) in _aligned(result, row).items():
                if score in scores:
                    values[name].append(scores[score])
                    _note(about, name, (unit, ""))
        for item in result["items"]:
            if score in item["scores"]:
                values[item["id"]].append(item["scores"][score])
                _note(about, item["id"], (item["unit"], item["kind"]))
    return {name: Cell(sum(found) / len(found), *about[name]) for name, found in values.items()}


def _note(about: dict[str, tuple[str, str]], name: str, own: tuple[str, str]) -> None:
    """Keep unit and kind of an item; it is the same item in every part that has it."""
    if about.setdefault(name, own) != own:
        raise UserError(
            f"the item {name} is {' '.join(own)} in one part and {' '.join(about[name])} in "
            "another: if the study's parts are data sets, say `sets: true`"
        )


def _start(found: Finished, score: str) -> Column:
    """Alignment before training, of each part once: the arms of a part begin alike."""
    if score not in TITLES:
        return {}
    parts: dict[str, RunResult] = {}
    for results in found.values():
        parts = {**results, **parts}
    return _column(parts.values(), score, BEFORE)


def _kinds(columns: Iterable[Column]) -> list[str]:
    kinds = sorted({cell.kind for column in columns for cell in column.values()})
    return [ALL] if len(kinds) < 2 else [ALL, *kinds]


def _interval(score: str, column: Column) -> Interval:
    values = [cell.value for cell in column.values()]
    units = [cell.unit for cell in column.values()]
    return (mean_interval if score in UNBOUNDED else score_interval)(values, units)


def _pair(first: Column, second: Column) -> Pair | None:
    """Return the values of the items that both columns have, and their units."""
    shared = [name for name in first if name in second]
    if not shared:
        return None
    a, b = ([column[name].value for name in shared] for column in (first, second))
    return a, b, [first[name].unit for name in shared]


def _tested(score: str, pair: Pair, patterns: int) -> PairedTest | Difference:
    return (paired_difference if score in UNBOUNDED else paired_test)(*pair, patterns=patterns)


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
    """Return the table as text of at most 80 columns; scores in points, of 100."""
    lines = [study.title, f"{table.finished} of {table.planned} runs are finished", ""]
    groups = list(dict.fromkeys((one.set, one.score, one.kind) for one in table.scores))
    every = max((len(one.parts) for one in table.scores), default=0)
    for set_, score, kind in groups:
        own = (set_, score, kind)
        rows = [one for one in table.scores if (one.set, one.score, one.kind) == own]
        about = ("" if kind == ALL else f", {kind}") + (f", {set_}" if set_ else "")
        n, clusters = rows[0].interval.n, rows[0].interval.clusters
        lines.append(f"{score}{about} ({n} items of {clusters} units)")
        scale, digits = (1, 4) if score in UNBOUNDED else (100, 1)
        for row in rows:
            value, low, high = (scale * one for one in row.interval[:3])
            # Means over other parts are means over other units, and not to be set side by side.
            some = f", {len(row.parts)} of {every} parts" if 0 < len(row.parts) < every else ""
            lines.append(
                f"  {row.arm:<24} {value:7.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]{some}"
            )
        for one in table.tests:
            if (one.set, one.score, one.kind) == own:
                value, low, high = (
                    scale * end for end in (one.test.difference, one.test.low, one.test.high)
                )
                lines.append(
                    f"  {one.first} - {one.second}: {value:+.{digits}f} "
                    f"[{low:+.{digits}f}, {high:+.{digits}f}], Holm {one.p_holm:.3f}"
                )
        lines.append("")
    return lines
