"""By which rule an item is scored, and what a copy of its reference gets."""

import pytest

from pipelines.metrics.ceiling import ceiling_lines, ceilings
from pipelines.metrics.items import item_scores
from pipelines.metrics.question_kind import inferred, inferred_line, question_kind
from pipelines.metrics.vqa import in_closed_table
from shared.records import AnswerType, Record, Turn

pytestmark = pytest.mark.unit
REPORT = (
    "The heart size is within normal limits. The lungs are clear of focal consolidation, "
    "effusion or pneumothorax. There is no acute bony abnormality seen on this study."
)


def record(
    answer: str,
    answer_type: AnswerType | None = None,
    options: tuple[str, ...] = (),
    **extra: object,
) -> Record:
    turns = (Turn("human", "?"), Turn("gpt", answer))
    return Record("1", (), turns, answer_type, options, dict(extra))


@pytest.mark.parametrize(
    ("one", "kind", "said"),
    [
        (record("left lung"), "open", False),
        (record("left lung", "CLOSED"), "closed", True),
        (record("Yes"), "closed", False),
        (record("No, both lungs are clear."), "closed", False),
        (record("Normal"), "open", False),
        (record("nodule"), "open", False),
        (record(REPORT), "report", False),
        (record("one word", task="report"), "report", True),
        (record("Yes", question_type="binary", choices=""), "closed", True),
        (record("No", ground_truth_type="binary"), "closed", True),
        (record("Unclear", ground_truth_type="binary"), "open", False),
        (record("It is rare.", structured_answer=None), "report", True),
        (record("MRI", options=("A. MRI", "B. CT")), "choice", True),
        (record("yes", "CLOSED", options=("yes", "no")), "closed", True),
    ],
)
def test_the_kind_of_an_item(one: Record, kind: str, said: bool) -> None:
    assert question_kind(one) == (kind, said)


def test_a_perfect_open_answer_without_a_type_scores_1() -> None:
    assert item_scores(record("left lung"), "left lung")["open_recall"] == 1.0


def test_what_was_inferred_is_said() -> None:
    records = [record("left lung"), record("Yes"), record("Yes", "CLOSED"), record(REPORT)]
    assert inferred(records) == {"open": 1, "closed": 1, "report": 1}
    assert inferred_line(inferred(records)).startswith("3 records do not say how they are scored")
    assert inferred(records[2:3]) == {}


def test_a_copy_of_the_references_shows_what_a_rule_cannot_see() -> None:
    """LLaVA-Med's closed rule wants the letters yes or no, so "left" is never right."""
    records = [record("left", "CLOSED"), record("yes", "CLOSED"), record("ribs", "OPEN")]
    found = ceilings(records)
    assert found == {"closed_accuracy": 0.5}
    assert "a copy of the references scores 50.0" in ceiling_lines(found)[0]
    assert ceilings(records[1:]) == {}


def test_closed_denominators_are_the_papers() -> None:
    """VQA-RAD: 251 yes and no, and three "abnormal", make the 254 that fit its table."""
    assert [in_closed_table(one) for one in ("Yes", "no", "abnormal", "left", "Axial")] == [
        True, True, True, False, False,
    ]  # fmt: skip
