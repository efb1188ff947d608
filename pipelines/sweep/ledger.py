"""What a finished run leaves: one small JSON file, from which every table of the study is made.

    RESULTS/ARM-PART.json    a `RunResult`

It holds the score of every item, so that arms are paired item by item and whole patients are
exchanged, and it is all that another machine needs to go on with the study.
"""

import json
from pathlib import Path
from typing import TypedDict, cast

from pipelines.documents import read_document, write_text
from pipelines.sweep.study import Run, Value
from shared.errors import UserError

SCHEMA_NUMBER = 1


class Item(TypedDict):
    """One question: its unit, its kind (a field of the record, or none), and its scores."""

    id: str
    unit: str
    kind: str
    scores: dict[str, float]


class RunResult(TypedDict):
    """What a finished run leaves."""

    schema: int
    study: str
    arm: str
    part: str
    identity: str
    values: dict[str, Value]
    items: list[Item]
    losses: dict[str, float]  # the terms of the last logged step
    steps: int
    after: dict[str, object]
    seconds: dict[str, float]  # of train, evaluate and each of `after`
    machine: str
    software: dict[str, str]


def result_file(results: Path, run: Run) -> Path:
    """Where the result of a run is."""
    return results / f"{run.name}.json"


def write_run(results: Path, run: Run, result: RunResult) -> None:
    """Write a run's result whole, on one line, its numbers to six digits."""
    write_text(result_file(results, run), json.dumps(_rounded(result), ensure_ascii=False) + "\n")


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


def read_run(results: Path, run: Run) -> RunResult | None:
    """Return a run's result, or None where it is not finished.

    Raises
    ------
    UserError
        The file is of another version, or of a run with other settings.
    """
    file = result_file(results, run)
    if not file.is_file():
        return None
    remedy = "move it away, then the run is made again"
    found = cast("RunResult", read_document(file, SCHEMA_NUMBER, remedy))
    if found.get("identity") != run.identity:
        raise UserError(f"{file} is of a run with other settings than the study's; {remedy}")
    return found
