"""What a page shows of the answers: scores by kind of question, and some answers themselves."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from pipelines.evaluation.result import AnswerLine, ResultRow, Score, row_name
from pipelines.metrics.items import SCORES, item_scores
from pipelines.statistics import score_interval
from shared.records import Record

SHOWN_EXAMPLES = 8
KINDS = {
    "presence": "is structure X visible? (as many yes as no for each structure and plane)",
    "plane": "is this slice axial / coronal / sagittal? (half yes)",
    "which-plane": "which plane is this slice?",
    "structures": "which structures are visible, the three largest",
    "box": "which structure fills the marked box?",
}


class Answered(NamedTuple):
    """One row's answers, in the data file's order."""

    method: str  # the row's name
    adapter: str
    texts: list[str]
    scores: list[dict[str, float]]

    @classmethod
    def of(cls, row: ResultRow, lines: Sequence[AnswerLine]) -> "Answered":
        """Take them from a row and its answers file."""
        texts = [line["prediction"] for line in lines]
        return cls(row_name(row), row["adapter"], texts, [line["scores"] for line in lines])


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


class ExampleAnswer(TypedDict):
    """What one row says to an example, and its whole-word score."""

    text: str
    score: float


class Example(TypedDict):
    """One question with its picture (PNG in base64) and every row's answer."""

    question: str
    reference: str
    image: str
    answers: list[ExampleAnswer]


def distinct_scores(rows: Sequence[ResultRow]) -> list[str]:
    """Return the names of the scores, less those that equal an earlier one in every row."""
    columns: dict[str, list[Score | None]] = {}
    for name in SCORES:
        column = [row["scores"].get(name) for row in rows]
        if any(column) and column not in columns.values():
            columns[name] = column
    return list(columns)


def kind_table(records: Sequence[Record], answered: Sequence[Answered]) -> list[Kind]:
    """Scores by the records' field `kind`, where they have one.

    Beside each, the score of the best constant answer.
    """
    kinds = dict.fromkeys(record.extra.get("kind") for record in records)
    return [_kind(str(kind), records, answered) for kind in kinds if kind is not None]


def _kind(kind: str, records: Sequence[Record], answered: Sequence[Answered]) -> Kind:
    places = [i for i, record in enumerate(records) if record.extra.get("kind") == kind]
    images = [", ".join(records[i].images) or records[i].id for i in places]
    values: list[KindScore] = []
    for row in answered:
        found = score_interval([_strict(row.scores[i]) for i in places], images)
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
        float(np.mean([_strict(item_scores(one, answer)) for one in records]))
        for answer in candidates
    )


def examples(records: Sequence[Record], answered: Sequence[Answered], root: Path) -> list[Example]:
    """Return the first record of each kind, then the first others, as `SHOWN_EXAMPLES` allows.

    With each row's answer and a small picture.
    """
    first = {record.extra.get("kind"): i for i, record in reversed(list(enumerate(records)))}
    order = sorted(first.values()) + [i for i in range(len(records)) if i not in first.values()]
    return [
        {
            "question": records[i].question,
            "reference": records[i].answer,
            "image": _thumbnail(records[i], root),
            "answers": [
                {"text": row.texts[i], "score": _strict(row.scores[i])} for row in answered
            ],
        }
        for i in order[:SHOWN_EXAMPLES]
        if records[i].images
    ]


def _strict(scores: Mapping[str, float]) -> float:
    """Return the whole-word score of an item, whichever it takes part in."""
    return next(value for name, value in scores.items() if name.endswith("_strict"))


def _thumbnail(record: Record, root: Path) -> str:
    from shared.imaging.images import open_image

    picture = open_image(record.references(root)[0])
    picture.thumbnail((168, 168))
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
