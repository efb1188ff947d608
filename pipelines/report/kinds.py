"""What a page shows of the scores: which ones, and those by kind of question."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from pipelines.evaluation.result import ResultRow, Score
from pipelines.metrics.items import SCORES, item_scores
from pipelines.metrics.question_kind import question_kind
from pipelines.report.answers import Answered, main_score
from pipelines.statistics import score_interval
from shared.records import Record

KINDS = {
    "presence": "is structure X visible? (as many yes as no for each structure and plane)",
    "plane": "is this slice axial / coronal / sagittal? (half yes)",
    "which-plane": "which plane is this slice?",
    "structures": "which structures are visible, the three largest",
    "box": "which structure fills the marked box?",
}


class KindScore(TypedDict):
    """Score of one row on one kind, with its interval."""

    value: float
    low: float
    high: float


class Kind(TypedDict):
    """One kind of question: its rows' scores beside that of the best constant answer."""

    kind: str
    text: str
    n: int
    constant: float
    values: list[KindScore]


def distinct_scores(rows: Sequence[ResultRow]) -> list[str]:
    """Return the names of the scores, less those that equal an earlier one in every row."""
    columns: dict[str, list[Score | None]] = {}
    for name in SCORES:
        column = [row["scores"].get(name) for row in rows]
        if any(column) and column not in columns.values():
            columns[name] = column
    return list(columns)


def kind_table(records: Sequence[Record], answered: Sequence[Answered]) -> list[Kind]:
    """Scores by the records' field `kind`, where they have one; reports have no kinds.

    Beside each, the score of the best constant answer.
    """
    places: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        kind = record.extra.get("kind")
        if kind is not None and question_kind(record).kind != "report":
            places.setdefault(str(kind), []).append(place)
    return [_kind(kind, chosen, records, answered) for kind, chosen in places.items()]


def _kind(
    kind: str, places: Sequence[int], records: Sequence[Record], answered: Sequence[Answered]
) -> Kind:
    images = [", ".join(records[i].images) or records[i].id for i in places]
    values: list[KindScore] = []
    for row in answered:
        found = score_interval([main_score(row.scores[i]) for i in places], images)
        values.append({"value": found.value, "low": found.low, "high": found.high})
    return {
        "kind": kind,
        "text": KINDS.get(kind, kind),
        "n": len(places),
        "constant": best_constant([records[i] for i in places]),
        "values": values,
    }


def best_constant(records: Sequence[Record]) -> float:
    """Return the mean score of the one reference answer that scores best on all these records."""
    candidates = {record.answer for record in records}
    return max(
        float(np.mean([main_score(item_scores(one, answer)) for one in records]))
        for answer in candidates
    )
