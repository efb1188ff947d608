"""Which rows of an evaluation differ from MEDALIGN's, by the paired test."""

from pathlib import Path

from pipelines.evaluation.result import (
    Comparison,
    Result,
    decoding_method,
    read_answers,
    read_item_metrics,
    row_name,
)
from pipelines.evaluation.scores import Row, Scored, compare_rows, comparison_pairs
from student_train.adapter.method import MEDALIGN

BETTER, WORSE = "+", "−"
LEVEL = 0.05
LEGEND = (
    f"{BETTER} and {WORSE} beside ours: better or worse than MEDALIGN here, by the paired test "
    "(p < 0.05 after Holm's correction over the evaluation's tests); without a mark no test tells "
    "them apart, or there is no MEDALIGN to test against."
)


def comparisons_of(folder: Path, result: Result) -> list[Comparison]:
    """Return the paired tests of an evaluation.

    Where `medalign report metrics` left the values of each report, over all of its metrics; else
    those of the evaluation itself.
    """
    names = [row_name(row) for row in result["rows"]]
    metrics = {name: read_item_metrics(folder, name) for name in names}
    if not any(metrics.values()):
        return result.get("comparisons", [])
    rows = {}
    for name in names:
        lines = read_answers(folder, name)
        found = metrics[name]
        scores = [{**line["scores"], **found.get(line["id"], {})} for line in lines]
        rows[name] = Scored.of(lines)._replace(scores=scores)
    described = [Row(row_name(row), row["adapter"], row["decoding"]) for row in result["rows"]]
    return compare_rows(rows, comparison_pairs(described))


def marks_of(folder: Path, result: Result) -> dict[tuple[str, str], str]:
    """Return the mark of each (row, score) that a test tells apart from MEDALIGN's."""
    mine = next(
        (
            row_name(row)
            for row in result["rows"]
            if row["adapter"] == MEDALIGN and decoding_method(row) == "beam"
        ),
        None,
    )
    marks = {}
    for one in comparisons_of(folder, result):
        if mine not in (one["a"], one["b"]) or one["p_holm"] >= LEVEL:
            continue
        other = one["b"] if one["a"] == mine else one["a"]
        mine_less = one["difference"] if one["a"] == mine else -one["difference"]
        marks[other, one["score"]] = WORSE if mine_less > 0 else BETTER
    return marks
