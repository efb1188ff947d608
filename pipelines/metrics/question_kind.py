"""By which rule an item is scored: what its record says, else what its reference looks like."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pipelines.metrics import vqa
from shared.records import Record

Kind = Literal["open", "closed", "choice", "report"]
# A reference of two sentences and so many words is a report: the answers of the public question
# sets are a few words, their longest single sentences among them.
_REPORT_WORDS = 25
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")


class QuestionKind(NamedTuple):
    """The kind of an item, and whether its record says so itself."""

    kind: Kind
    said: bool


def question_kind(record: Record) -> QuestionKind:
    """Return how an item is scored.

    The record says it by `task: report`, by its options beyond yes and no, or by `answer_type`; in
    MedHEval's files by `binary` for what is answered by yes or no, and by a `structured_answer`
    for texts of sentences, which the metrics of reports score there.
    Where it says nothing, a reference that begins with yes or no is closed, one of two sentences
    and 25 words a report, any other open.
    """
    if record.extra.get("task") == "report" or "structured_answer" in record.extra:
        return QuestionKind("report", True)
    # OmniMedVQA scores every question as multiple choice, those between yes and no as well.
    if "option_A" in record.extra or (
        len(record.options) > 1 and not all(vqa.is_yes_no(option) for option in record.options)
    ):
        return QuestionKind("choice", True)
    if record.answer_type is not None:
        return QuestionKind("open" if record.answer_type == "OPEN" else "closed", True)
    kind = _kind_of_reference(record.answer)
    binary = "binary" in (record.extra.get(name) for name in ("question_type", "ground_truth_type"))
    return QuestionKind(kind, binary and kind == "closed")


def _kind_of_reference(reference: str) -> Kind:
    if re.match(r"\W*(?:yes|no)\b", reference, re.IGNORECASE):
        return "closed"
    sentences = len(_SENTENCE_END.findall(reference))
    return "report" if sentences > 1 and len(reference.split()) >= _REPORT_WORDS else "open"


def inferred(records: Sequence[Record]) -> dict[str, int]:
    """Count the records whose kind was inferred from their reference, by kind."""
    kinds = (question_kind(record) for record in records)
    return dict(Counter(one.kind for one in kinds if not one.said))


def inferred_line(counts: dict[str, int]) -> str:
    """Say which kinds were inferred."""
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return (
        f"{sum(counts.values())} records do not say how they are scored; inferred from their "
        f"references: {shown} (say it yourself with `answer_type`: OPEN or CLOSED, or "
        '`"task": "report"`)'
    )
