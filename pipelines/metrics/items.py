"""The scores of one item: of an answer to the question of a record."""

from collections.abc import Mapping
from typing import cast

from pipelines.metrics import vqa
from pipelines.metrics.question_kind import Kind, question_kind
from shared.errors import UserError
from shared.records import Record

# What each score averages, for tables.
SCORES = {
    "open_recall": "open questions: share of the reference's words, LLaVA-Med's rule",
    "open_recall_strict": "open questions: the same with clipped counts, one spelling, no denied "
    "words",
    "open_f1_strict": "open questions: F1 of words, the strict rule",
    "open_exact_strict": "open questions: the reference and nothing besides, strict rule",
    "closed_accuracy": "closed questions: LLaVA-Med's substring rule",
    "closed_accuracy_strict": "closed questions: the last plain answer, both named is wrong",
    "closed_yes_no": "closed questions whose reference has the letters yes or no (the paper's "
    "denominators), LLaVA-Med's rule",
    "choice_accuracy": "multiple choice: most similar option, OmniMedVQA's rule in the authors' "
    "code",
    "choice_accuracy_strict": "multiple choice: the one option named",
    "bleu": "reports: mean sentence BLEU-4; `medalign report metrics` gives the metrics that need "
    "a model",
    "rouge_l": "reports: ROUGE-L F measure",
}


def item_scores(record: Record, answer: str) -> dict[str, float]:
    """Every score that this item takes part in, each in [0, 1].

    By the record's kind (`question_kind`). A report has BLEU and ROUGE-L here; the metrics that
    need models are a command of their own (`medalign report metrics`).
    """
    truth = record.answer
    kind = question_kind(record).kind
    if kind == "report":
        return _report_scores(answer, truth)
    if kind == "choice":
        return {
            "choice_accuracy": float(vqa.choice_correct(answer, truth, record.options)),
            "choice_accuracy_strict": float(
                vqa.choice_correct(answer, truth, record.options, rule="strict")
            ),
        }
    if kind == "open":
        return {
            "open_recall": vqa.open_recall(answer, truth),
            "open_recall_strict": vqa.open_recall(answer, truth, rule="strict"),
            "open_f1_strict": vqa.open_f1(answer, truth, rule="strict"),
            "open_exact_strict": vqa.open_exact(answer, truth, rule="strict"),
        }
    scores = {
        "closed_accuracy": float(vqa.closed_correct(answer, truth)),
        "closed_accuracy_strict": float(vqa.closed_correct(answer, truth, rule="strict")),
    }
    return scores | (
        {"closed_yes_no": scores["closed_accuracy"]} if vqa.in_closed_table(truth) else {}
    )


def kind_of_scores(scores: Mapping[str, float]) -> Kind:
    """Return the kind of an item from the names of its scores (`item_scores`)."""
    kind = next(iter(scores), "").partition("_")[0]
    return cast("Kind", kind) if kind in ("open", "closed", "choice") else "report"


def _report_scores(answer: str, truth: str) -> dict[str, float]:
    """BLEU and ROUGE-L of one report.

    The metrics that need neither a model nor data of their own.
    """
    from pipelines.metrics import bleu, rouge
    from pipelines.metrics.metric import Pair, Unavailable

    pair = Pair(truth, answer)
    try:
        metrics = bleu.load({}), rouge.load({})
    except Unavailable as reason:
        raise UserError(f"reports cannot be scored: {reason}") from None
    return {
        name: cast("float", value)
        for metric in metrics
        for name, value in metric.compute([pair])[0].items()
    }
