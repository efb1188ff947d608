"""Generated reports and their references, from the files that evaluations and other tools write."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pipelines.metrics.metric import Pair
from shared.errors import UserError
from shared.records import load_records

IDS = ("id", "question_id", "study_id", "qid")
PREDICTIONS = ("prediction", "text", "report")
REFERENCES = ("reference", "gt_ans", "report")
Row = Mapping[str, object]


class Reports(NamedTuple):
    """Reports in the predictions' order.

    `clusters` names what each is of: as the file says, else all its images, else its id.
    """

    ids: list[str]
    pairs: list[Pair]
    clusters: list[str]


def load_reports(predictions: Path, references: Path | None = None) -> Reports:
    """Read predictions, and their references from the same file or from another one.

    Parameters
    ----------
    predictions
        `.jsonl` as `medalign evaluate` writes it (`id`, `prediction`, `reference`, `images`) or as
        the authors' code does (`question_id`, `text`, `gt_ans`), or `.csv` with `study_id` and
        `report`.
    references
        A data set file with the same ids, or `.jsonl`/`.csv` with `reference` or `report`.

    Raises
    ------
    UserError
        A field is missing, an id occurs twice, or the two files do not hold the same ids.
    """
    rows = _rows(predictions)
    said = {_field(row, IDS, where): (row, where) for where, row in rows}
    if len(said) != len(rows):
        raise UserError(f"{predictions}: {len(rows) - len(said)} ids occur more than once")
    if references is None:
        truth = {key: _field(row, REFERENCES[:2], where) for key, (row, where) in said.items()}
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
        pairs.append(Pair(truth[key], _field(row, PREDICTIONS, where)))
        shown = row.get("images")
        named = ", ".join(map(str, shown)) if isinstance(shown, list) else ""
        clusters.append(str(row.get("cluster") or named or key))
    return Reports(list(said), pairs, clusters)


def _references(path: Path) -> dict[str, str]:
    rows = _rows(path) if path.suffix != ".parquet" else []
    if not rows or "conversations" in rows[0][1]:
        return {record.id: record.answer for record in load_records(path)}
    return {_field(row, IDS, where): _field(row, REFERENCES, where) for where, row in rows}


def _rows(path: Path) -> list[tuple[str, Row]]:
    """Return (where, row) of every record of the file."""
    try:
        rows = _parsed(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} holds no list of records; predictions are .jsonl, .json or .csv")
    return [(f"{path}, record {number}", row) for number, row in enumerate(rows)]


def _parsed(path: Path) -> object:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    lines = text.split("\n") if path.suffix == ".jsonl" else []
    return [json.loads(line) for line in lines if line.strip()]


def _field(row: Row, names: tuple[str, ...], where: str) -> str:
    for name in names:
        if row.get(name) is not None:
            return str(row[name])
    raise UserError(f"{where}: no `{'` or `'.join(names)}`; it has {', '.join(map(str, row))}")
