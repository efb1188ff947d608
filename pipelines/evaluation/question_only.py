"""The baseline that never sees an image: the most frequent training answer of each question's text.

A question that the training data do not ask gets the most frequent answer to those of its kind
(open, closed, choice, report), and the most frequent of all where there is none of its kind.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from pipelines.evaluation.result import QuestionOnly
from pipelines.evaluation.scores import Scored, summarise
from pipelines.metrics.items import item_scores
from pipelines.metrics.question_kind import question_kind
from shared.console import warn
from shared.records import Record, load_records, strip_marks
from student_train.adapter.provenance import file_digest, read_provenance


def training_file(folder: Path) -> Path | None:
    """Return the file that an adapter was trained on, as its run recorded it.

    None where it is not recorded, is gone or has changed; the latter two are said.
    """
    provenance = read_provenance(folder)
    recorded = provenance["data"].get("train") if provenance else None
    if recorded is None:
        return None
    file = Path(recorded["file"])
    if not file.is_file():
        warn(f"no question-only baseline: {file} is not there; name the training data with --train")
        return None
    if file_digest(file) != recorded["sha256"]:
        warn(f"no question-only baseline: {file} has changed since training; name it with --train")
        return None
    return file


def question_only(train: Path, records: Sequence[Record], clusters: Sequence[str]) -> QuestionOnly:
    """Answer a test set by question text alone, and score that.

    Raises
    ------
    UserError
        The training data cannot be read.
    """
    learned = load_records(train)
    texts, known = answers_by_question(learned, records)
    scores = [item_scores(record, text) for record, text in zip(records, texts, strict=True)]
    return {
        "train": str(train),
        "sha256": file_digest(train),
        "known": known,
        "scores": summarise(Scored(texts, scores, list(clusters))),
    }


def answers_by_question(
    learned: Sequence[Record], records: Sequence[Record]
) -> tuple[list[str], int]:
    """Return the answer to each record by its question's text, and how many texts are known.

    Of answers as frequent the first in the file is taken.
    """
    by_text: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_kind: defaultdict[str, Counter[str]] = defaultdict(Counter)
    everything: Counter[str] = Counter()
    for record in learned:
        kind = question_kind(record).kind
        for asked, said in zip(record.turns[::2], record.turns[1::2], strict=False):
            by_text[_plain(strip_marks(asked.text))][said.text] += 1
            by_kind[kind][said.text] += 1
            everything[said.text] += 1
    if not everything:
        return ["" for _ in records], 0
    texts, known = [], 0
    for record in records:
        found = by_text.get(_plain(record.question))
        known += found is not None
        answers = found or by_kind.get(question_kind(record).kind) or everything
        texts.append(answers.most_common(1)[0][0])
    return texts, known


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
