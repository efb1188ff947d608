"""The evaluation folder's files: written and read in one place, older ones as well."""

import json
from pathlib import Path
from typing import cast

import pytest

from pipelines.evaluation.result import (
    RESULT,
    SCHEMA_NUMBER,
    AnswerLine,
    Result,
    ResultRow,
    answers_path,
    decoding_method,
    read_answers,
    read_metrics,
    read_result,
    row_name,
    write_answers,
    write_result,
)
from shared.errors import UserError
from tests.fixtures import results

pytestmark = pytest.mark.unit

ROW: ResultRow = {
    "method": "LoRA + beam",
    "adapter": "LoRA",
    "decoding": {"method": "beam", "num_beams": 5},
    "scores": {
        "open_recall": {
            "value": 0.5,
            "interval": [0.25, 0.75],
            "n": 4,
            "clusters": 2,
            "trusted": False,
        }
    },
    "empty": 0,
    "at_limit": 1,
    "tokens": 12,
    "seconds_per_token": 0.1,
    "forward_passes_per_token": 1.0,
    "sequence_passes_per_token": 5.0,
}
LINE: AnswerLine = {
    "id": "1",
    "images": ["ä.png"],
    "cluster": "ä",
    "question": "Which?",
    "reference": "left lung",
    "prediction": "the left\nlung",
    "scores": {"open_recall": 1.0},
}


def test_a_result_comes_back(tmp_path: Path) -> None:
    whole = {"rows": [ROW], "data": results.answered(), "settings": results.settings()}
    write_result(tmp_path / "out", cast("Result", {"schema": SCHEMA_NUMBER, **whole}))
    assert read_result(tmp_path / "out" / RESULT)["rows"] == [ROW]


@pytest.mark.parametrize(
    ("kept", "found"), [({}, 1), ({"schema": 1}, 1), ({"schema": SCHEMA_NUMBER + 1}, 4)]
)
def test_a_result_of_another_schema_is_refused(
    tmp_path: Path, kept: dict[str, int], found: int
) -> None:
    (tmp_path / RESULT).write_text(json.dumps({**kept, "rows": []}))
    with pytest.raises(UserError, match=rf"has schema {found}.*run `medalign evaluate` again"):
        read_result(tmp_path / RESULT)


def test_a_result_from_before_the_controls_is_read(tmp_path: Path) -> None:
    older = {"schema": 2, "rows": [], "data": {}, "settings": {}}
    (tmp_path / RESULT).write_text(json.dumps(older))
    assert read_result(tmp_path / RESULT) == {
        **older,
        "controls": None,
        "question_only": None,
        "by": [],
    }


@pytest.mark.parametrize(
    ("part", "field"),
    [("data", None), ("data", "ceilings"), ("settings", "seed"), ("rows", "empty")],
)
def test_a_result_that_lacks_a_field_is_one_line(
    tmp_path: Path, part: str, field: str | None
) -> None:
    result = {
        "schema": SCHEMA_NUMBER,
        "rows": [dict(ROW)],
        "data": results.answered(),
        "settings": results.settings(),
    }
    if field is None:
        del result[part]
    else:
        holder = result[part][0] if part == "rows" else result[part]
        del holder[field]
    (tmp_path / RESULT).write_text(json.dumps(result))
    with pytest.raises(UserError, match=rf"lacks {field or part}; run `medalign evaluate` again"):
        read_result(tmp_path / RESULT)


@pytest.mark.parametrize("score", ["NaN", "7", "-0.1", '"1"', "null"])
def test_a_score_that_is_none_is_one_line(tmp_path: Path, score: str) -> None:
    write_answers(tmp_path, "LoRA + beam", [LINE])
    path = answers_path(tmp_path, "LoRA + beam")
    path.write_text(path.read_text().replace("1.0", score))
    with pytest.raises(UserError, match="a score is no number from 0 to 1"):
        read_answers(tmp_path, "LoRA + beam")


def test_a_rows_name_is_not_its_decoding_method() -> None:
    assert row_name(ROW) == "LoRA + beam"
    assert decoding_method(ROW) == "beam"


def test_answers_come_back_in_their_order(tmp_path: Path) -> None:
    lines = cast("list[AnswerLine]", [LINE, {**LINE, "id": "2"}])
    write_answers(tmp_path, row_name(ROW), lines)
    assert answers_path(tmp_path, row_name(ROW)) == tmp_path / "answers" / "lora-beam.jsonl"
    assert read_answers(tmp_path, row_name(ROW)) == lines
    with pytest.raises(
        UserError, match=r"medalign-beam\.jsonl is missing; run `medalign evaluate`"
    ):
        read_answers(tmp_path, "MEDALIGN + beam")


def test_an_answer_may_hold_any_line_end(tmp_path: Path) -> None:
    """U+2028 ends a line for Python's splitlines, and not for JSON."""
    lines = cast("list[AnswerLine]", [{**LINE, "prediction": "left\u2028lung\x0b\x85right"}])
    write_answers(tmp_path, row_name(ROW), lines)
    assert read_answers(tmp_path, row_name(ROW)) == lines


@pytest.mark.parametrize("torn", ['{"id": "1", "ima', '{"id": "1"}', "[1]"])
def test_a_torn_answers_file_is_one_line(tmp_path: Path, torn: str) -> None:
    path = answers_path(tmp_path, row_name(ROW))
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(LINE) + "\n" + torn + "\n")
    with pytest.raises(UserError, match=r"lora-beam\.jsonl cannot be read.*evaluate` again") as one:
        read_answers(tmp_path, row_name(ROW))
    assert "\n" not in str(one.value)


def test_metrics_of_a_row_are_read_where_there_are_some(tmp_path: Path) -> None:
    assert read_metrics(tmp_path, row_name(ROW)) is None
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "lora-beam.json").write_text(
        json.dumps({"schema": SCHEMA_NUMBER, "scores": {}})
    )
    found: object = read_metrics(tmp_path, row_name(ROW))
    assert found == {"schema": SCHEMA_NUMBER, "scores": {}}
