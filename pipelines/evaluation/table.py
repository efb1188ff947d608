"""The table of an evaluation: each row scored, each pair tested, equal answers called out."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, cast

from pipelines.evaluation.reliance import Controlled, controlled
from pipelines.evaluation.result import SCHEMA_NUMBER, Answer, Result, ResultRow
from pipelines.evaluation.scores import (
    Row,
    Scored,
    compare_rows,
    comparison_pairs,
    identical_outputs,
    power_note,
    summarise,
)
from shared.console import warn


class AnsweredRow(NamedTuple):
    """A row of the table with its answers, scored."""

    row: Row
    scored: Scored
    answers: list[Answer]
    dtype: str  # of the base weights
    controls: Mapping[str, Controlled] = MappingProxyType({})  # the same row under each control


def tested(answered: Sequence[AnsweredRow]) -> Result:
    """Return the part of a result that follows from the answers: scores, tests, alarms, power."""
    scored = {one.row.name: one.scored for one in answered}
    pairs = comparison_pairs([one.row for one in answered])
    comparisons = compare_rows(scored, pairs)
    identical = identical_outputs(scored)
    for first, second in identical:
        count = len(scored[first].texts)
        warn(f"{first} and {second} gave byte-identical answers to all {count} items")
    dtypes = {one.row.name: one.dtype for one in answered}
    if len(set(dtypes.values())) > 1:
        said = ", ".join(f"{name} in {dtype}" for name, dtype in dtypes.items())
        warn(f"the rows were not answered in one type ({said}); --dtype gives one to all")
    return {
        "schema": SCHEMA_NUMBER,
        "rows": [_result_row(one) for one in answered],
        "identical_outputs": identical,
        "comparisons": comparisons,
        "power": power_note(scored, comparisons),
        "controls": controlled(
            {one.row.name: (one.scored, one.controls) for one in answered}, pairs
        ),
    }


def _result_row(answered: AnsweredRow) -> ResultRow:
    """Return a row with its scores and the mean cost of a generated token.

    Forward passes are a batch's, so they are divided by its steps.
    """
    row, scored, answers, dtype, _ = answered
    tokens = sum(answer["tokens"] for answer in answers)
    steps = sum(answer["steps"] for answer in answers)
    return {
        "method": row.name,
        "adapter": row.adapter,
        "decoding": row.decoding,
        "dtype": dtype,
        "scores": summarise(scored),
        "empty": sum(not answer["text"].strip() for answer in answers),
        "at_limit": sum(
            answer["tokens"] >= cast("int", row.decoding["max_new_tokens"]) for answer in answers
        ),
        "tokens": tokens,
        "seconds_per_token": sum(answer["seconds"] for answer in answers) / tokens,
        "forward_passes_per_token": sum(answer["passes"] for answer in answers) / steps,
        "sequence_passes_per_token": sum(answer["sequence_passes"] for answer in answers) / steps,
    }
