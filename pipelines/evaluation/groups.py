"""Scores of the items that share the value of a field: by modality, by kind of content."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pipelines.evaluation.result import Group, Grouping
from pipelines.evaluation.scores import Scored, asked_tests, compare_rows, summarise
from pipelines.metrics.question_kind import question_kind
from pipelines.statistics import holm
from shared.errors import UserError
from shared.records import Record

NONE = "(none)"
OWN = ("answer_type", "kind")  # fields that every record has


def check_fields(records: Sequence[Record], fields: Sequence[str]) -> None:
    """Refuse a field that no record has, and name those that there are."""
    known = Counter(name for record in records for name in record.extra)
    for name in fields:
        if name not in known and name not in OWN:
            raise UserError(
                f"--by {name}: no record has this field; there are "
                f"{', '.join([*OWN, *sorted(known)])}"
            )


def by_groups(
    rows: Mapping[str, Scored],
    pairs: Sequence[tuple[str, str]],
    records: Sequence[Record],
    fields: Sequence[str],
) -> list[Grouping]:
    """Score and compare rows within the groups of each field.

    Holm's correction is over all tests of a field's groups: they are one table.

    Parameters
    ----------
    rows, pairs
        The rows by name, and which are compared.
    records
        What the rows answer, in their order.
    fields
        Fields of the records, beside `answer_type` and `kind` (by which an item is scored).

    Raises
    ------
    UserError
        No record has such a field.
    """
    check_fields(records, fields)
    return [
        {"field": field, "groups": _groups(rows, pairs, [_value(one, field) for one in records])}
        for field in fields
    ]


def _groups(
    rows: Mapping[str, Scored], pairs: Sequence[tuple[str, str]], values: Sequence[str]
) -> list[Group]:
    counts = Counter(values).most_common()
    inside = {
        value: {
            name: scored.at([place for place, one in enumerate(values) if one == value])
            for name, scored in rows.items()
        }
        for value, _ in counts
    }
    family = sum(len(asked_tests(found, pairs)) for found in inside.values())
    groups: list[Group] = [
        {
            "value": value,
            "items": count,
            "scores": {name: summarise(scored) for name, scored in inside[value].items()},
            "comparisons": compare_rows(inside[value], pairs, family),
        }
        for value, count in counts
    ]
    tests = [one for group in groups for one in group["comparisons"]]
    for one, p in zip(tests, holm([one["p_permutation"] for one in tests]), strict=True):
        one["p_holm"] = p
    return groups


def _value(record: Record, field: str) -> str:
    if field == "answer_type":
        return record.answer_type or NONE
    if field == "kind" and "kind" not in record.extra:
        return question_kind(record).kind
    value = record.extra.get(field)
    if isinstance(value, list):
        value = ", ".join(str(one) for one in value)
    return NONE if value in (None, "") else str(value)
