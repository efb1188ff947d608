"""Our scores for the paper's tables.

They come from evaluation folders: `result.json`, and `metrics/` beside it for reports (`medalign
report metrics`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.evaluation.result import (
    RESULT,
    Result,
    ResultRow,
    Score,
    decoding_method,
    read_metrics,
    read_result,
    row_name,
)
from pipelines.metrics.metric import MetricScore
from pipelines.report.marks import marks_of
from pipelines.report.paper import MODELS, SCORES, SETS, read_paper
from shared.errors import UserError
from student_train.adapter.method import LORA, MEDALIGN

# Our scores that stand for a column of the paper, best first: its closed denominators fit the
# yes/no questions.
OURS = {"open": ("open_recall",), "close": ("closed_yes_no", "closed_accuracy")} | {
    name: (name,) for name in list(SCORES)[:7]
}
CHOICE = ("choice_accuracy",)


class Ours(NamedTuple):
    """One of our scores: value and interval in [0, 1], over `n` items.

    `mark`: what the paired test against MEDALIGN says; `source`: the letter of its folder, where
    the table has several; `best`: of the row of the table.
    """

    value: float
    low: float
    high: float
    n: int
    trusted: bool = True
    mark: str = ""
    source: str = ""
    best: bool = False


class Evaluations(NamedTuple):
    """Our scores by (model, set, method, column), and a line of each evaluation.

    A line is (model, set, what was decoded how). `folders` has a letter for each.
    """

    scores: dict[tuple[str, str, str, str], Ours]
    lines: list[tuple[str, str, str]]
    folders: dict[str, str]


def load_ours(results: Sequence[str]) -> Evaluations:
    """Read evaluations given as "MODEL/SET=FOLDER".

    Raises
    ------
    UserError
        An unknown model or set, a folder without `result.json`, an evaluation of another set, or
        two scores for one cell.
    """
    ours, methods = Evaluations({}, [], {}), [name.lower() for name in read_paper()["methods"]]
    for given in results:
        model, name, folder = _place(given)
        file = folder / RESULT
        if not file.is_file():
            raise UserError(
                f"{folder} holds no result.json; give the folder that `medalign evaluate` wrote"
            )
        result = read_result(file)
        if result["data"].get("set") not in (None, name):
            raise UserError(
                f"{given!r}: that evaluation is of {result['data']['set']}, not of {name}"
            )
        letter = _letter(len(ours.folders))
        ours.folders.setdefault(str(folder), letter)
        letter = ours.folders[str(folder)]
        marks = marks_of(folder, result)
        for row in result["rows"]:
            method = _method(row)
            if method not in methods:
                ours.lines.append(
                    (model, name, f"Not in the table, which has no column for it: {row_name(row)}")
                )
                continue
            for column, (score, found) in _columns(name, row, folder).items():
                cell = (model, name, method, column)
                if cell in ours.scores:
                    raise UserError(
                        f"{given!r}: {row_name(row)} has a second score for one cell "
                        f"({SETS[name]} {SCORES[column]}); give one evaluation for each"
                    )
                mark = marks.get((row_name(row), score), "")
                ours.scores[cell] = found._replace(mark=mark, source=letter)
        lines = _lines(model, name, result, folder, letter)
        ours.lines.extend((model, name, line) for line in lines)
    return ours


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else f"a{number}"


def _place(given: str) -> tuple[str, str, Path]:
    where, equals, folder = given.partition("=")
    model, slash, name = where.partition("/")
    if not (equals and slash) or model not in MODELS or name not in SETS:
        raise UserError(
            f"{given!r}: write MODEL/SET=FOLDER with a model of {', '.join(MODELS)} and a set "
            f"of {', '.join(SETS)}"
        )
    return model, name, Path(folder)


def _method(row: ResultRow) -> str:
    """Return the paper's column of a row of ours: LoRA by decoding, MEDALIGN under beam search.

    Another row's is its own name, which no column has.
    """
    decoding = decoding_method(row)
    if row["adapter"] == LORA:
        return decoding
    if row["adapter"] == MEDALIGN and decoding == "beam":
        return MEDALIGN.lower()
    return row_name(row)


def _columns(name: str, row: ResultRow, folder: Path) -> dict[str, tuple[str, Ours]]:
    """Return the paper's columns that a row has a score for, and which; the set is `name`."""
    metrics = read_metrics(folder, row_name(row))
    scores: dict[str, Score | MetricScore] = {**row["scores"]}
    if metrics is not None:
        scores |= metrics["scores"]
    columns = {}
    for column, candidates in OURS.items():
        wanted = CHOICE if name == "omnimedvqa" else candidates
        score = next((score for score in wanted if score in scores), None)
        if score is not None:
            found = scores[score]
            low, high = found["interval"]
            ours = Ours(found["value"], low, high, found["n"], found["trusted"])
            columns[column] = (score, ours)
    return columns


def _lines(model: str, name: str, result: Result, folder: Path, letter: str) -> list[str]:
    """Say what an evaluation answered and how; what is left to train on; what bounds its scores."""
    settings, data = result["settings"], result["data"]
    lines = [
        f"({letter}) {MODELS[model]}, {name}: {data['items']} items (sha256 "
        f"{data['sha256'][:12]}), decoding preset {settings['preset']}, at most "
        f"{settings['max_new_tokens']} tokens, seed {settings['seed']}; from {folder}"
    ]
    if data.get("split"):
        lines.append(f"({letter}) {data['split']}")
    bounds = data.get("ceilings") or {}
    used = [score for score in bounds if any(score in names for names in (*OURS.values(), CHOICE))]
    if used:
        shown = ", ".join(f"{score} {100 * bounds[score]:.1f}" for score in used)
        lines.append(f"({letter}) what a copy of the references scores: {shown}")
    baseline = result.get("question_only")
    if baseline:
        wanted = [score for names in (*OURS.values(), CHOICE) for score in names]
        found = {
            score: baseline["scores"][score] for score in wanted if score in baseline["scores"]
        }
        shown = ", ".join(f"{score} {100 * one['value']:.1f}" for score, one in found.items())
        lines.append(f"({letter}) question only, from {baseline['train']}: {shown}")
    return lines
