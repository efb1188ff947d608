"""Predictions of a file joined with the records that they answer."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.evaluation.predictions import (
    IDS,
    QUESTIONS,
    REFERENCES,
    Prediction,
    field,
    read_predictions,
    read_rows,
)
from shared.console import warn
from shared.errors import UserError
from shared.records import Record, Turn, load_records


class Joined(NamedTuple):
    """The answer to each record, in the records' order, and by what they were joined."""

    texts: list[str]
    by: str  # id | place


def read_references(path: Path) -> list[Record]:
    """Read what a test set asks and its answers: a data set file, or rows of id and reference.

    Rows are those of a predictions file, with `reference`, `gt_ans` or `report`; where they ask
    nothing, they are reports.

    Raises
    ------
    UserError
        The file cannot be read, or a record has no reference answer.
    """
    if path.suffix == ".parquet" or (path.suffix != ".csv" and _is_data_set(path)):
        records = load_records(path)
        silent = [record.id for record in records if not record.answer]
        if silent:
            raise UserError(
                f"{path}: {len(silent)} records have no reference answer, first id {silent[0]}"
            )
        return records
    return [_record(row, where) for where, row in read_rows(path)]


def _is_data_set(path: Path) -> bool:
    _, first = read_rows(path)[0]
    return "conversations" in first or ("question" in first and "answer" in first)


def _record(row: Mapping[str, object], where: str) -> Record:
    identifier, truth = field(row, IDS, where), field(row, (*REFERENCES, "answer"), where)
    asked = next((str(row[name]) for name in QUESTIONS if row.get(name)), "")
    extra = {key: value for key, value in row.items() if value not in (None, "")}
    if not asked:
        extra |= {"task": "report"}
    return Record(identifier, (), (Turn("human", asked), Turn("gpt", truth)), extra=extra)


def join(file: Path, references: Path, records: Sequence[Record]) -> Joined:
    """Join the predictions of a file with the records of `references`.

    By their ids. Where these are not the same: by place, if the file has as many rows (or
    lmms-eval's places in the test set) and each says the question or the reference of the record
    at its place.

    Raises
    ------
    UserError
        They do not join, or most rows ask something else than the record of their id.
    """
    predictions = read_predictions(file)
    ids = [record.id for record in records]
    by_id = {one.id: one.text for one in predictions}
    unique = len(by_id) == len(predictions) and len(set(ids)) == len(ids)
    if unique and by_id.keys() == set(ids) and not predictions[0].place:
        _check_same_set(file, references, predictions, records)
        return Joined([by_id[identifier] for identifier in ids], "id")
    placed = _by_place(predictions, records)
    if placed is not None:
        return Joined(placed, "place")
    raise UserError(
        f"{file} and {references} do not join by id: {_fault(predictions, ids)}; nor by place, "
        "where every row must say its question or its reference"
    )


def _fault(predictions: Sequence[Prediction], ids: Sequence[str]) -> str:
    """Say why predictions do not join records of these ids."""
    given, wanted = Counter(one.id for one in predictions), set(ids)
    twice = [name for name, count in given.items() if count > 1]
    if twice:
        return f"{len(twice)} ids occur more than once, first {twice[0]}"
    alone = [name for name in (*given, *ids) if (name in given) != (name in wanted)]
    return (
        f"{len(given.keys() - wanted)} predictions have no reference, "
        f"{len(wanted - given.keys())} references no prediction"
    ) + (f", e.g. {alone[0]}" if alone else "")


def _check_same_set(
    file: Path, references: Path, predictions: Sequence[Prediction], records: Sequence[Record]
) -> None:
    """Refuse the predictions of another set whose ids are the same numbers; name odd rows."""
    by_id = {record.id: record for record in records}
    telling = [one for one in predictions if _words(one.asked or "") or one.reference is not None]
    odd = [one.id for one in telling if not _agree(one, by_id[one.id])]
    if not odd:
        return
    line = (
        f"{len(odd)} of {len(predictions)} rows of {file} ask or answer something else than the "
        f"record of {references} with their id, first id {odd[0]}"
    )
    if 2 * len(odd) > len(telling):
        raise UserError(f"{line}; are these the references of that file?")
    warn(line)


def _by_place(predictions: Sequence[Prediction], records: Sequence[Record]) -> list[str] | None:
    if len(predictions) != len(records):
        return None
    order = list(predictions)
    if all(one.place and one.id.isdigit() for one in predictions):
        order.sort(key=lambda one: int(one.id))
        if [int(one.id) for one in order] != list(range(len(records))):
            return None
    agree = all(_agree(one, record) for one, record in zip(order, records, strict=True))
    return [one.text for one in order] if agree else None


def _agree(prediction: Prediction, record: Record) -> bool:
    """Whether a prediction is of this record, by its question, or its reference where it has none.

    Either may hold more than the other, such as the options.
    """
    said, asked = _words(prediction.asked or ""), _words(record.question)
    if said and asked:
        return said in asked or asked in said
    if prediction.reference is not None:
        return _words(prediction.reference) == _words(record.answer)
    return False


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
