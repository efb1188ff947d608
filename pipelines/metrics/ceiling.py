"""The ceiling of each score: what a copy of the references gets.

A rule that marks the reference itself as wrong says less about an answer than about the question's
form: LLaVA-Med's rule marks "MRI" wrong where the options carry letters. The number stands beside
every score that it bounds.
"""

from collections.abc import Mapping, Sequence

from pipelines.metrics.items import SCORES, item_scores
from shared.records import Record


def ceilings(records: Sequence[Record]) -> dict[str, float]:
    """Return the mean of every score over the references themselves, where it is below 1."""
    values: dict[str, list[float]] = {}
    for record in records:
        for name, value in item_scores(record, record.answer).items():
            values.setdefault(name, []).append(value)
    means = {name: sum(values[name]) / len(values[name]) for name in SCORES if name in values}
    return {name: mean for name, mean in means.items() if mean < 1}


def ceiling_lines(found: Mapping[str, float]) -> list[str]:
    """Say each ceiling in a line."""
    return [
        f"{name}: a copy of the references scores {100 * value:.1f}, not 100: the rule marks some "
        "right answers wrong"
        for name, value in found.items()
    ]
