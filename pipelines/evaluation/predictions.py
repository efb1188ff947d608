"""Predictions in the files that evaluations write: ours and other tools'.

.jsonl  our answers files; LLaVA's and MedHEval's (`question_id`, `text`, `gt_ans`); samples of
lmms-eval (`doc_id`, `filtered_resps`, `target`)
.json   a list of such rows, or {id: text}, or {id: row}
.csv    with a column of each
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pipelines.metrics.metric import Pair
from shared.errors import UserError
from shared.records import load_records

SAMPLE_ID = "doc_id"  # of lmms-eval: the place of the question in its test set
IDS = ("id", "question_id", "study_id", "qid", SAMPLE_ID)
PREDICTIONS = (
    "prediction", "text", "model_answer", "filtered_resps", "response", "generated", "report",
)  # fmt: skip
QUESTIONS = ("question", "prompt", "input")
REFERENCES = ("reference", "gt_ans", "report")
TARGETS = ("reference", "gt_ans", "target", "ground_truth")
_MARKS = ",;|\t"  # between the columns of a table
Row = Mapping[str, object]


class Prediction(NamedTuple):
    """One row of a predictions file; `asked` and `reference` are what it says of them, if it does.

    `place`: the id is a place in the test set, as in samples of lmms-eval.
    """

    id: str
    text: str
    asked: str | None
    reference: str | None
    place: bool


class Reports(NamedTuple):
    """Reports in the predictions' order.

    `clusters` names what each is of: as the file says, else all its images, else its id.
    """

    ids: list[str]
    pairs: list[Pair]
    clusters: list[str]


def read_predictions(path: Path) -> list[Prediction]:
    """Read the predictions of a file, in its order.

    Raises
    ------
    UserError
        The file cannot be read, or a row has no id or no prediction.
    """
    return [
        Prediction(
            field(row, IDS, where),
            field(row, PREDICTIONS, where),
            _optional(row, QUESTIONS),
            _optional(row, TARGETS),
            next(name for name in IDS if row.get(name) is not None) == SAMPLE_ID,
        )
        for where, row in read_rows(path)
    ]


def load_reports(predictions: Path, references: Path | None = None) -> Reports:
    """Read predictions, and their references from the same file or from another one.

    Parameters
    ----------
    predictions
        A file of any of the forms above.
    references
        A data set file with the same ids, or `.jsonl`/`.csv` with `reference` or `report`.

    Raises
    ------
    UserError
        A field is missing, an id occurs twice, or the two files do not hold the same ids.
    """
    rows = read_rows(predictions)
    said = {field(row, IDS, where): (row, where) for where, row in rows}
    if len(said) != len(rows):
        raise UserError(f"{predictions}: {len(rows) - len(said)} ids occur more than once")
    if references is None:
        truth = {key: field(row, TARGETS[:2], where) for key, (row, where) in said.items()}
    else:
        truth = _references(references)
        unmatched = sorted(set(truth) ^ set(said))
        if unmatched:
            raise UserError(
                f"{predictions} and {references} hold different ids: {len(set(said) - set(truth))} "
                "predictions have "
                f"no reference, {len(set(truth) - set(said))} references no prediction, e.g. "
                f"{unmatched[0]}"
            )
    pairs, clusters = [], []
    for key, (row, where) in said.items():
        pairs.append(Pair(truth[key], field(row, PREDICTIONS, where)))
        shown = row.get("images")
        named = ", ".join(map(str, shown)) if isinstance(shown, list) else ""
        clusters.append(str(row.get("cluster") or named or key))
    return Reports(list(said), pairs, clusters)


def _references(path: Path) -> dict[str, str]:
    rows = read_rows(path) if path.suffix != ".parquet" else []
    if not rows or "conversations" in rows[0][1]:
        return {record.id: record.answer for record in load_records(path)}
    return {field(row, IDS, where): field(row, REFERENCES, where) for where, row in rows}


def read_rows(path: Path) -> list[tuple[str, Row]]:
    """Return (where, row) of every record of the file."""
    try:
        rows = _parsed(path)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if isinstance(rows, dict):
        rows = [_named(key, value) for key, value in rows.items()]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} holds no list of records; predictions are .jsonl, .json or .csv")
    return [(f"{path}, record {number}", row) for number, row in enumerate(rows)]


def _named(key: str, value: object) -> object:
    if isinstance(value, dict):
        return {"id": key, **value}
    return {"id": key, "prediction": value} if isinstance(value, str) else value


def _parsed(path: Path) -> object:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            mark = max(_MARKS, key=header.count)
            return list(csv.DictReader(file, delimiter=mark))
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        return json.loads(text)
    lines = text.split("\n") if path.suffix == ".jsonl" else []
    return [json.loads(line) for line in lines if line.strip()]


def field(row: Row, names: tuple[str, ...], where: str) -> str:
    """Return the first of these fields that a row has, as text; raise UserError where it has none.

    Lists of one text, as in samples of lmms-eval, are that text.
    """
    found = _optional(row, names)
    if found is None:
        raise UserError(f"{where}: no `{'` or `'.join(names)}`; it has {', '.join(map(str, row))}")
    return found


def _optional(row: Row, names: tuple[str, ...]) -> str | None:
    for name in names:
        value = row.get(name)
        while isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is not None:
            return str(value)
    return None
