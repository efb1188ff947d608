"""What a page shows of the answers themselves: those that turned, then some of each kind."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from pipelines.evaluation.result import AnswerLine, ResultRow, decoding_method, row_name
from shared.records import Record

SHOWN_EXAMPLES = 8
SHOWN_FLIPS = 4  # of each direction
REPORT_SCORE = "rouge_l"  # stands for a report where one number has to


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


class ExampleAnswer(TypedDict):
    """What one row says to an example, and its main score."""

    text: str
    score: float


class Example(TypedDict):
    """One question with every row's answer, and its picture (PNG in base64) where it shows one."""

    question: str
    reference: str
    image: str | None
    answers: list[ExampleAnswer]


class Flips(TypedDict):
    """Questions that row `a` answers wholly right and row `b` does not, and the reverse.

    All are counted; the first of each direction, in the file's order, are shown. Reports are no
    questions: nothing is wholly right there, and `n` does not count them.
    """

    a: str
    b: str
    n: int
    gained: int  # wrong under `a`, right under `b`
    lost: int
    gains: list[Example]
    losses: list[Example]


def main_score(scores: Mapping[str, float]) -> float:
    """Return the one number that stands for an item: its first strict score, a report's ROUGE-L."""
    strict = (value for name, value in scores.items() if name.endswith("_strict"))
    return next(strict, scores.get(REPORT_SCORE, 0.0))


def is_question(scores: Mapping[str, float]) -> bool:
    """Whether an item is right or wrong; nothing is wholly right of a report."""
    return REPORT_SCORE not in scores


def turned_pair(rows: Sequence[ResultRow]) -> tuple[int, int] | None:
    """Return the two rows, by place, whose answers are compared: another arm's and the last.

    Of the last row's decoding method where the other arm has it. None where one arm alone answered.
    """
    others = [place for place, row in enumerate(rows) if row["adapter"] != rows[-1]["adapter"]]
    if not others:
        return None
    method = decoding_method(rows[-1])
    first = next((one for one in others if decoding_method(rows[one]) == method), others[0])
    return first, len(rows) - 1


def flips(
    records: Sequence[Record], rows: Sequence[ResultRow], answered: Sequence[Answered], root: Path
) -> Flips | None:
    """Compare the last row with one of another arm, of its own decoding method where there is one.

    None where one arm alone answered, or reports alone were asked for.
    """
    pair = turned_pair(rows)
    asked = [place for place, scores in enumerate(answered[0].scores) if is_question(scores)]
    if pair is None or not asked:
        return None
    a, b = (answered[place] for place in pair)
    right = {one: (main_score(a.scores[one]) == 1, main_score(b.scores[one]) == 1) for one in asked}
    gained = [place for place, pair in right.items() if pair == (False, True)]
    lost = [place for place, pair in right.items() if pair == (True, False)]
    return {
        "a": a.method,
        "b": b.method,
        "n": len(asked),
        "gained": len(gained),
        "lost": len(lost),
        "gains": [_example(records, answered, root, one) for one in gained[:SHOWN_FLIPS]],
        "losses": [_example(records, answered, root, one) for one in lost[:SHOWN_FLIPS]],
    }


def examples(records: Sequence[Record], answered: Sequence[Answered], root: Path) -> list[Example]:
    """Return the first record of each kind, then the first others, as `SHOWN_EXAMPLES` allows.

    With each row's answer and a small picture.
    """
    first = {str(record.extra.get("kind")): i for i, record in reversed(list(enumerate(records)))}
    order = sorted(first.values()) + [i for i in range(len(records)) if i not in first.values()]
    return [_example(records, answered, root, i) for i in order[:SHOWN_EXAMPLES]]


def _example(
    records: Sequence[Record], answered: Sequence[Answered], root: Path, place: int
) -> Example:
    record = records[place]
    return {
        "question": record.question,
        "reference": record.answer,
        "image": _thumbnail(record, root) if record.images else None,
        "answers": [
            {"text": row.texts[place], "score": main_score(row.scores[place])} for row in answered
        ],
    }


def _thumbnail(record: Record, root: Path) -> str:
    from shared.imaging.images import open_image

    picture = open_image(record.references(root)[0])
    picture.thumbnail((168, 168))
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
