"""Compare two evaluations of one test set.

The paired tests that two printed percentages cannot give.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.evaluation.groups import by_groups
from pipelines.evaluation.result import (
    FOLDER,
    RESULT,
    AnsweredSet,
    AnswerLine,
    Grouping,
    PairedTests,
    Result,
    read_answers,
    read_item_metrics,
    read_metrics,
    read_result,
    row_name,
)
from pipelines.evaluation.scores import Scored, compare_rows, identical_outputs, power_note
from pipelines.metrics.items import SCORES
from shared.console import warn
from shared.errors import UserError
from shared.records import Record, load_records


class TwoEvaluations(PairedTests):
    """What `medalign compare --json` prints."""

    a: str
    b: str
    data: AnsweredSet
    by: list[Grouping]


def compare(
    a: Path,
    b: Path,
    row_a: str | None = None,
    row_b: str | None = None,
    by: Sequence[str] = (),
) -> TwoEvaluations:
    """Test the rows of evaluation `a` against those of `b`, paired by the items' ids.

    Parameters
    ----------
    a, b
        Folders that `medalign evaluate` wrote (or their `result.json`).
    row_a, row_b
        Which row of each, by its name; by default every decoding that both have, or the only row of
        each.
    by
        Fields of the test set's records, for rows per group.

    The metrics of reports that `medalign report metrics` left in both folders are compared too.

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
        joined = _joined(answers, read_answers(folder_b, other), a, b)
        rows[name_a] = Scored.of(_with_metrics(answers, folder_a, one))
        rows[name_b] = Scored.of(_with_metrics(joined, folder_b, other))
        _drop_unlike(rows[name_a], rows[name_b], (folder_a, one), (folder_b, other))
        pairs.append((name_a, name_b))
    comparisons = compare_rows(rows, pairs)
    return {
        "a": str(a),
        "b": str(b),
        "data": first["data"],
        "comparisons": comparisons,
        "power": power_note(rows, comparisons),
        "identical_outputs": [pair for pair in identical_outputs(rows) if tuple(pair) in pairs],
        "by": by_groups(rows, pairs, _records(first, folder_a, pairs, by), by) if by else [],
    }


def _with_metrics(answers: Sequence[AnswerLine], folder: Path, row: str) -> list[AnswerLine]:
    """Add the report metrics of each item, where they were computed."""
    found = read_item_metrics(folder, row)
    return [{**line, "scores": {**line["scores"], **found.get(line["id"], {})}} for line in answers]


def _drop_unlike(a: Scored, b: Scored, of_a: tuple[Path, str], of_b: tuple[Path, str]) -> None:
    """Leave out the metrics that the two folders computed by other versions, and say so."""
    versions = [
        found["versions"] if found else {} for found in (read_metrics(*of_a), read_metrics(*of_b))
    ]
    unlike = [name for name in versions[0] if versions[0][name] != versions[1].get(name)]
    names = [name for name in a.names() if any(name.startswith(metric) for metric in unlike)]
    names = [name for name in names if name not in SCORES]
    if names:
        warn(
            f"not compared, computed otherwise or in one alone: {', '.join(names)}; run `medalign "
            "report metrics` on both folders, with the same models"
        )
    for scores in (*a.scores, *b.scores):
        for name in names:
            scores.pop(name, None)


def _records(
    result: Result, folder: Path, pairs: Sequence[tuple[str, str]], by: Sequence[str]
) -> list[Record]:
    """Return the records that a result's answers are of, in their order."""
    file = Path(result["data"]["file"])
    if not file.is_file():
        raise UserError(f"--by {','.join(by)}: the test set {file} is not there; give --references")
    records = {record.id: record for record in load_records(file)}
    ids = [line["id"] for line in read_answers(folder, pairs[0][0].removeprefix("A: "))]
    missing = [one for one in ids if one not in records]
    if missing:
        raise UserError(f"{file} has no record {missing[0]} any more; evaluate again")
    return [records[one] for one in ids]


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
