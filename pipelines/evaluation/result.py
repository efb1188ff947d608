"""The evaluation folder: what `medalign evaluate` writes, and the only code that reads it.

    OUT/result.json          a `Result`; its schema number stands for the whole folder
    OUT/answers/ROW.jsonl    an `AnswerLine` an item, in the data file's order
    OUT/controls/CONTROL/answers/ROW.jsonl    the same under a control, as it was asked
    OUT/metrics/ROW.json     a `MetricsFile`, where `medalign report metrics` ran on the folder
    OUT/metrics/ROW.jsonl    an `ItemMetrics` a report: the same metrics, report by report
    OUT/journal/*.jsonl      a `JournalLine` an answer, in the order they were made (`journal.py`)

Two keys are called `method`: that of a row is the row's own name ("LoRA + beam"), that of its
decoding the decoding method's ("beam"). `row_name` and `decoding_method` tell them apart.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from pipelines.documents import read_document, write_document, write_text
from pipelines.metrics.metric import MetricScores
from shared.errors import UserError

SCHEMA_NUMBER = 3
OLDEST_SCHEMA = 2  # the same without `controls`, `question_only` and `by`
RESULT = "result.json"
FOLDER = "evaluation"  # in a run


class Score(TypedDict):
    """A mean over `n` items in `clusters` clusters, with its interval [low, high].

    `trusted`: there are clusters enough for an interval.
    """

    value: float
    interval: list[float]
    n: int
    clusters: int
    trusted: bool


class ResultRow(TypedDict):
    """One line of the table: an adapter under a decoding."""

    method: str  # the row's name, see `row_name`
    adapter: str  # the arm's name
    decoding: Mapping[str, object]  # `method` (see `decoding_method`) and every setting
    dtype: NotRequired[str]  # of the base weights that answered, such as bfloat16
    scores: dict[str, Score]
    empty: int  # answers without a word
    at_limit: int  # answers as long as the limit, cut there as a rule
    tokens: int
    seconds_per_token: float
    forward_passes_per_token: float
    sequence_passes_per_token: float


class Comparison(TypedDict):
    """Row `a` against row `b` on one score, paired by item, whole clusters exchanged."""

    a: str
    b: str
    score: str
    difference: float
    interval: list[float]
    p_permutation: float
    n: int
    clusters: int
    detectable: float | None  # smallest difference that the set shows; None: it shows none
    p_holm: float  # over all comparisons of the table


class PairedTests(TypedDict, total=False):
    """What tests say of rows: in a result, and in what `medalign compare` prints."""

    identical_outputs: list[list[str]]
    comparisons: list[Comparison]
    power: dict[str, float | None]  # smallest difference that the set shows, by score


class RunSettings(TypedDict):
    """How the answers of a result were made."""

    preset: str
    overrides: list[str]
    max_new_tokens: int
    batch_size: int
    seed: int
    limit: int | None
    adapters: dict[str, str]
    base: NotRequired[str | None]  # where the base model was, if not where the recipes say


class AnsweredSet(TypedDict):
    """What was answered."""

    file: str
    image_root: NotRequired[str]  # folder of its images
    set: str | None  # name of the prepared set, where it is one
    split: str | None  # how that is split, and how much of its training data is left
    sha256: str
    items: int
    images: int
    clusters: int
    cluster: str  # what a cluster is: image, or a field of the records
    without_image: NotRequired[int]  # items that are asked by text alone
    inferred: dict[str, int]  # records by kind, where the kind was inferred from the reference
    ceilings: dict[str, float]  # what a copy of the references scores, where that is below 1


class ControlledRow(TypedDict):
    """A row under a control: its scores there, and the share of its answers that change."""

    row: str
    control: str
    scores: dict[str, Score]
    changed: Score | None  # None: no item names a side, and the images were mirrored


class Survivor(TypedDict):
    """A gain of row `a` over row `b` that is there on blank images too."""

    a: str
    b: str
    score: str
    gain: float
    blank_gain: float
    interval: list[float]  # of the latter
    p_holm: float


class Controls(TypedDict):
    """What rows answer where the image says nothing, or is mirrored (`controls.py`)."""

    items: int  # that were asked: all that show an image, or a sample of them
    rows: list[ControlledRow]
    losses: list[Comparison]  # row `a` against itself under the control `b`
    survivors: list[Survivor]


class QuestionOnly(TypedDict):
    """What the most frequent training answer of each question's text scores."""

    train: str
    sha256: str
    known: int  # items whose question the training data ask
    scores: dict[str, Score]


class Group(TypedDict):
    """The items that share one value of a field; `p_holm` is over all groups of the field."""

    value: str
    items: int
    scores: dict[str, dict[str, Score]]  # by row
    comparisons: list[Comparison]


class Grouping(TypedDict):
    """Scores by the values of one field of the records."""

    field: str
    groups: list[Group]


class Result(PairedTests, total=False):
    """What `result.json` holds. The ranks above 0 of an evaluation have none of it."""

    schema: int
    rows: list[ResultRow]
    controls: Controls | None  # None: not asked for
    question_only: QuestionOnly | None  # None: no training data
    by: list[Grouping]
    settings: RunSettings
    data: AnsweredSet
    software: dict[str, str]
    created: str


class AnswerLine(TypedDict):
    """One item of a row's answers file."""

    id: str
    images: list[str]
    cluster: str
    question: str
    reference: str
    prediction: str
    scores: dict[str, float]
    system: NotRequired[str]  # of an item that brings a system message of its own


KEYS = AnswerLine.__required_keys__


class MetricsFile(MetricScores):
    """`metrics/ROW.json`, what `medalign report metrics` makes of a row's answers."""

    schema: int
    predictions: str
    reports: int


class ItemMetrics(TypedDict):
    """The report metrics of one item."""

    id: str
    scores: dict[str, float]


class Answer(TypedDict):
    """One answer with its cost, as the journal keeps it."""

    item: str
    text: str
    tokens: int
    seconds: float
    passes: int  # forward passes of the batch it was in
    sequence_passes: float  # the same, weighted by the rows of each, per item
    steps: int  # tokens of the batch's longest answer


class JournalLine(Answer):
    """An answer under the key of all it depends on (`journal.answer_key`)."""

    key: str


def row_name(row: ResultRow) -> str:
    """Name of the row: its arm and its decoding method, such as "LoRA + beam"."""
    return row["method"]


def decoding_method(row: ResultRow) -> str:
    """Name of the decoding method of a row, such as "beam"."""
    return str(row["decoding"]["method"])


def write_result(folder: Path, result: Result) -> None:
    """Write `result.json`."""
    write_document(folder / RESULT, result, indent=2)


def read_result(file: Path) -> Result:
    """Read a `result.json`, which is there.

    Raises
    ------
    UserError
        It is no JSON, of a schema that this version does not know, or lacks a field.
    """
    remedy = "run `medalign evaluate` again"
    found = read_document(file, SCHEMA_NUMBER, remedy, OLDEST_SCHEMA)
    result = cast("Result", {"controls": None, "question_only": None, "by": [], **found})
    lacking = sorted({"data", "rows", "settings"} - set(found)) or _lacking(result)
    if lacking:
        raise UserError(f"{file} lacks {', '.join(lacking)}; {remedy}")
    return result


def _lacking(result: Result) -> list[str]:
    """Return the fields that a result's parts lack, sorted; older schemas had fewer."""
    if result["schema"] != SCHEMA_NUMBER:
        return []
    parts: list[tuple[Mapping[str, object], frozenset[str]]] = [
        (result["data"], AnsweredSet.__required_keys__),
        (result["settings"], RunSettings.__required_keys__),
        *((row, ResultRow.__required_keys__) for row in result["rows"]),
    ]
    return sorted({name for part, needed in parts for name in needed - set(part)})


def control_folder(folder: Path, control: str) -> Path:
    """Where the answers under a control are, laid out as in an evaluation folder."""
    return folder / "controls" / control


def answers_path(folder: Path, row: str) -> Path:
    """Where the answers of the row with this name are."""
    name, at, variant = row.lower().partition("@")
    stem = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    # alpha=-1 is another row than alpha=1, and 0.5 another than 05
    return folder / "answers" / f"{stem}{at}{re.sub(r'[^a-z0-9.=_;+-]+', '_', variant)}.jsonl"


def metrics_path(folder: Path, stem: str) -> Path:
    """Where the report metrics of an answers file, named without its ending, are."""
    return folder / "metrics" / f"{stem}.json"


def read_metrics(folder: Path, row: str) -> MetricsFile | None:
    """Read the report metrics of the row with this name, or None where there are none."""
    file = metrics_path(folder, answers_path(folder, row).stem)
    if not file.is_file():
        return None
    remedy = "run `medalign report metrics` again"
    return cast("MetricsFile", read_document(file, SCHEMA_NUMBER, remedy, OLDEST_SCHEMA))


def write_item_metrics(folder: Path, stem: str, items: Sequence[ItemMetrics]) -> None:
    """Write the report metrics of each item of an answers file, named without its ending."""
    text = "".join(json.dumps(one) + "\n" for one in items)
    write_text(metrics_path(folder, stem).with_suffix(".jsonl"), text)


def read_item_metrics(folder: Path, row: str) -> dict[str, dict[str, float]]:
    """Read the report metrics of a row's items by id; none where they were not computed."""
    file = metrics_path(folder, answers_path(folder, row).stem).with_suffix(".jsonl")
    if not file.is_file():
        return {}
    try:
        text = file.read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.split("\n") if line]
        return {line["id"]: line["scores"] for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({error}); run `medalign report metrics` again"
        ) from None


def write_answers(folder: Path, row: str, lines: Sequence[AnswerLine]) -> None:
    """Write the answers file of a row."""
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    write_text(answers_path(folder, row), text + "\n")


def answers_file(folder: Path, row: str) -> Path:
    """Return where the answers of a row are, or raise a UserError where they are not."""
    path = answers_path(folder, row)
    if not path.is_file():
        raise UserError(
            f"{path} is missing; run `medalign evaluate` again (answers in the journal are not "
            "repeated)"
        )
    return path


def read_answers(folder: Path, row: str) -> list[AnswerLine]:
    """Read the answers file of a row.

    Raises
    ------
    UserError
        It is not there, torn, or no answers.
    """
    path = answers_file(folder, row)
    # Not splitlines: an answer may hold U+2028, which ends a line for it and not for JSON.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [answer_of(line, path) for line in lines if line]


def answer_of(line: str, path: Path) -> AnswerLine:
    """Read one line of the answers file at `path`.

    Raises
    ------
    UserError
        It is torn, or no answer.
    """
    try:
        answer = json.loads(line)
        if not answer.keys() >= KEYS:
            raise ValueError("an answer lacks a field")
        if not all(_is_share(score) for score in answer["scores"].values()):
            raise ValueError("a score is no number from 0 to 1")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); run `medalign evaluate` again") from None
    return cast("AnswerLine", answer)


def _is_share(score: object) -> bool:
    return isinstance(score, int | float) and 0 <= score <= 1  # which NaN is not
