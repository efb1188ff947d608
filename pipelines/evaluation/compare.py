"""Compare two evaluations of one test set.

The paired tests that two printed percentages cannot give.
"""

import json
from pathlib import Path
from typing import Any

from pipelines.evaluation.run import RESULT, answers_path
from pipelines.evaluation.scores import Scored, compare_rows, identical_outputs, power_note
from shared.errors import UserError


def compare(a: Path, b: Path, row_a: str | None = None, row_b: str | None = None) -> dict[str, Any]:
    """Test the rows of evaluation `a` against those of evaluation `b`, paired by item and clustered by image.

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
        No result there, another test set, no row in common.
    """
    (folder_a, first), (folder_b, second) = _result(a), _result(b)
    if first["data"]["sha256"] != second["data"]["sha256"]:
        raise UserError(
            f"{a} and {b} answered different test sets ({first['data']['file']} and "
            f"{second['data']['file']}); "
            "only answers to the same items can be paired"
        )
    if first["settings"]["limit"] != second["settings"]["limit"]:
        raise UserError(
            f"{a} and {b} answered different numbers of items (--limit); evaluate both alike"
        )
    rows: dict[str, Scored] = {}
    pairs = []
    for one, other in _pairs(first, second, row_a, row_b):
        name_a, name_b = f"A: {one}", f"B: {other}"
        rows[name_a], rows[name_b] = _scored(folder_a, one), _scored(folder_b, other)
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


def _result(path: Path) -> tuple[Path, dict[str, Any]]:
    file = (
        path
        if path.is_file()
        else next((p for p in (path / RESULT, path / "evaluation" / RESULT) if p.is_file()), None)
    )
    if file is None:
        raise UserError(f"{path} holds no {RESULT}; run `medalign evaluate` first")
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); run `medalign evaluate` again") from None
    return file.parent, result


def _pairs(
    first: dict[str, Any], second: dict[str, Any], row_a: str | None, row_b: str | None
) -> list[tuple[str, str]]:
    names_a, names_b = (
        {row["method"]: row["decoding"] for row in one["rows"]} for one in (first, second)
    )
    for row, names in ((row_a, names_a), (row_b, names_b)):
        if row is not None and row not in names:
            raise UserError(f"there is no row {row!r}; there are {', '.join(names)}")
    chosen_a = [row_a] if row_a else list(names_a)
    chosen_b = [row_b] if row_b else list(names_b)
    if len(chosen_a) == len(chosen_b) == 1:
        return [(chosen_a[0], chosen_b[0])]
    pairs = [
        (one, other) for one in chosen_a for other in chosen_b if names_a[one] == names_b[other]
    ]
    if not pairs:
        raise UserError(
            f"no decoding is in both: {', '.join(chosen_a)} and {', '.join(chosen_b)}; "
            "name two rows with --row-a and --row-b"
        )
    return pairs


def _scored(folder: Path, row: str) -> Scored:
    path = answers_path(folder, row)
    if not path.is_file():
        raise UserError(
            f"{path} is missing; run `medalign evaluate` again (answers in the journal are not "
            "repeated)"
        )
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return Scored(
        [line["prediction"] for line in lines],
        [line["scores"] for line in lines],
        [line["images"][0] if line["images"] else "" for line in lines],
    )
