"""Compare two evaluations of one test set.

The paired tests that two printed percentages cannot give.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.evaluation.result import (
    FOLDER,
    RESULT,
    AnsweredSet,
    AnswerLine,
    PairedTests,
    Result,
    read_answers,
    read_result,
    row_name,
)
from pipelines.evaluation.scores import Scored, compare_rows, identical_outputs, power_note
from shared.errors import UserError


class TwoEvaluations(PairedTests):
    """What `medalign compare --json` prints."""

    a: str
    b: str
    data: AnsweredSet


def compare(a: Path, b: Path, row_a: str | None = None, row_b: str | None = None) -> TwoEvaluations:
    """Test the rows of evaluation `a` against those of `b`, paired by the items' ids.

    Parameters
    ----------
    a, b
        Folders that `medalign evaluate` wrote (or their `result.json`).
    row_a, row_b
        Which row of each, by its name; by default every decoding that both have, or the only row of
        each.

    Raises
    ------
    UserError
        No result there, other items or the same ones asked or clustered otherwise, an id twice, no
        row in common.
    """
    (folder_a, first), (folder_b, second) = _result(a), _result(b)
    rows: dict[str, Scored] = {}
    pairs = []
    for one, other in _pairs(first, second, row_a, row_b):
        name_a, name_b = f"A: {one}", f"B: {other}"
        answers = read_answers(folder_a, one)
        rows[name_a] = Scored.of(answers)
        rows[name_b] = Scored.of(_joined(answers, read_answers(folder_b, other), a, b))
        pairs.append((name_a, name_b))
    comparisons = compare_rows(rows, pairs)
    return {
        "a": str(a),
        "b": str(b),
        "data": first["data"],
        "comparisons": comparisons,
        "power": power_note(rows, comparisons),
        "identical_outputs": [pair for pair in identical_outputs(rows) if tuple(pair) in pairs],
    }


def _joined(
    answers: Sequence[AnswerLine], others: Sequence[AnswerLine], a: Path, b: Path
) -> list[AnswerLine]:
    """Return the answers of `b` in the order of those of `a`, joined by id."""
    first, second = _by_id(answers, a), _by_id(others, b)
    alone = [
        identifier
        for identifier in (*first, *second)
        if not (identifier in first and identifier in second)
    ]
    if alone:
        raise UserError(
            f"{a} and {b} answered different items: {len(alone)} ids are in one alone, first "
            f"{alone[0]}; evaluate both on one file, with one --limit"
        )
    for key in ("question", "reference", "cluster"):
        other = next((one for one in first if first[one].get(key) != second[one].get(key)), None)
        if other is not None:
            raise UserError(
                f"{a} and {b} have another {key} for the id {other}; evaluate both on one file"
            )
    return [second[identifier] for identifier in first]


def _by_id(answers: Sequence[AnswerLine], where: Path) -> dict[str, AnswerLine]:
    found = {line["id"]: line for line in answers}
    if len(found) < len(answers):
        raise UserError(
            f"{where}: {len(answers) - len(found)} ids occur more than once; give every record of "
            "the test set its own id, and evaluate again"
        )
    return found


def _result(path: Path) -> tuple[Path, Result]:
    """Return the evaluation's folder and its result."""
    places = [path, path / RESULT, path / FOLDER / RESULT]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UserError(f"{path} holds no {RESULT}; run `medalign evaluate` first")
    return file.parent, read_result(file)


def _pairs(
    first: Result, second: Result, row_a: str | None, row_b: str | None
) -> list[tuple[str, str]]:
    """Return which row is tested against which, by their names."""
    decodings_a, decodings_b = _decodings(first), _decodings(second)
    chosen_a, chosen_b = _chosen(row_a, decodings_a), _chosen(row_b, decodings_b)
    if len(chosen_a) == len(chosen_b) == 1:
        return [(chosen_a[0], chosen_b[0])]
    pairs = [
        (one, other)
        for one in chosen_a
        for other in chosen_b
        if decodings_a[one] == decodings_b[other]
    ]
    if not pairs:
        raise UserError(
            f"no decoding is in both: {', '.join(chosen_a)} and {', '.join(chosen_b)}; "
            "name two rows with --row-a and --row-b"
        )
    return pairs


def _decodings(result: Result) -> dict[str, Mapping[str, object]]:
    return {row_name(row): row["decoding"] for row in result["rows"]}


def _chosen(row: str | None, names: Mapping[str, object]) -> list[str]:
    """Return the row asked for, or all of them."""
    if row is None:
        return list(names)
    if row not in names:
        raise UserError(f"there is no row {row!r}; there are {', '.join(names)}")
    return [row]
