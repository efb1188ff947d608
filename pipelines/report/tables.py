"""Tables 1 to 3 of the paper with our numbers beside them.

The paper's numbers are data (`paper_tables.json`). Ours come from evaluation folders:
`result.json`, and `metrics/` beside it for reports (`medalign report metrics`). A cell that was not
run says so.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

from pipelines.evaluation.result import (
    RESULT,
    Result,
    ResultRow,
    Score,
    decoding_method,
    read_metrics,
    read_result,
    row_name,
)
from pipelines.metrics.metric import MetricScore
from shared.errors import UserError
from student_train.adapter.method import LORA, MEDALIGN

PAPER = Path(__file__).with_name("paper_tables.json")
MODELS = {"huatuogpt-vision": "HuatuoGPT-Vision-7B", "llava-med": "LLaVA-Med-1.5"}
SETS = {
    "iu-xray-report": "IU-Xray",
    "mimic-cxr-report": "MIMIC-CXR",
    "slake": "SLAKE",
    "vqa-rad": "VQA-RAD",
    "path-vqa": "PathVQA",
    "iu-xray-vqa": "IU-Xray",
    "omnimedvqa": "OmniMedVQA",
}
REPORT_SETS = ("iu-xray-report", "mimic-cxr-report")
SCORES = {
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "bertscore": "BERTScore",
    "chexbert": "CheXbert similarity",
    "radgraph": "RadGraph (entity + relation) / 2",
    "ratescore": "RaTEScore",
    "open": "Open",
    "close": "Close",
}
# Our scores that stand for a column of the paper, best first: its closed denominators fit the
# yes/no questions.
OURS = {"open": ("open_recall",), "close": ("closed_yes_no", "closed_accuracy")} | {
    name: (name,) for name in list(SCORES)[:7]
}
CHOICE = ("choice_accuracy",)
NOTES = {
    "report": (
        "CheXbert similarity is the mean cosine similarity of CheXbert embeddings, which the "
        "paper's column “CheXbert” "
        "holds; it is not an F1. RadGraph is the mean of entity F1 and relation F1. BLEU is the "
        "mean of sentence "
        "BLEU-4.",
        "The authors' MIMIC-CXR references were rewritten by a language model and are not "
        "published, so that half of "
        "the table cannot be reproduced like for like.",
    ),
    "vqa": (
        "Open is recall of the reference's words, Close accuracy, both by LLaVA-Med's rules. The "
        "paper's closed "
        "percentages fit the questions whose reference has the letters yes or no (254 of VQA-RAD's "
        "272, 355 of SLAKE's 416, PathVQA's 3,391); ours count these too.",
        "The authors' splits of IU-Xray and OmniMedVQA are not published; ours are drawn by image "
        "with a seed.",
    ),
    "same": (
        "The paper's columns VCD and DAMRO are identical in this table to the last digit: in the "
        "authors' code neither "
        "contrasts anything. Ours do, so these columns are not expected to agree.",
    ),
    "all": (
        "The paper gives no intervals. Ours are 95% intervals over clusters (patients or images), "
        "with the number of items n.",
    ),
}


class Ours(NamedTuple):
    """One of our scores: value and interval in [0, 1], over `n` items."""

    value: float
    low: float
    high: float
    n: int
    trusted: bool = True


class Cell(NamedTuple):
    """A number of the paper, in points, whether it is the paper's best, and ours."""

    paper: float
    best: bool
    ours: Ours | None


class Table(NamedTuple):
    """One table: `rows` of (group, name, cells), a cell a column."""

    number: int
    caption: str
    columns: list[str]
    rows: list[tuple[str, str, list[Cell]]]
    notes: list[str]


class Evaluations(NamedTuple):
    """Our scores by (model, set, method, column), and a line of each evaluation.

    A line is (model, set, what was decoded how).
    """

    scores: dict[tuple[str, str, str, str], Ours]
    lines: list[tuple[str, str, str]]


def load_ours(results: Sequence[str]) -> Evaluations:
    """Read evaluations given as "MODEL/SET=FOLDER".

    Raises
    ------
    UserError
        An unknown model or set, a folder without `result.json`, an evaluation of another set, or
        two scores for one cell.
    """
    ours, methods = Evaluations({}, []), [name.lower() for name in read_paper()["methods"]]
    for given in results:
        model, name, folder = _place(given)
        file = folder / RESULT
        if not file.is_file():
            raise UserError(
                f"{folder} holds no result.json; give the folder that `medalign evaluate` wrote"
            )
        result = read_result(file)
        if result["data"].get("set") not in (None, name):
            raise UserError(
                f"{given!r}: that evaluation is of {result['data']['set']}, not of {name}"
            )
        for row in result["rows"]:
            method = _method(row)
            if method not in methods:
                ours.lines.append(
                    (model, name, f"Not in the table, which has no column for it: {row_name(row)}")
                )
                continue
            for column, found in _columns(name, row, folder).items():
                cell = (model, name, method, column)
                if cell in ours.scores:
                    raise UserError(
                        f"{given!r}: {row_name(row)} has a second score for one cell "
                        f"({SETS[name]} {SCORES[column]}); give one evaluation for each"
                    )
                ours.scores[cell] = found
        ours.lines.append((model, name, _line(model, name, result)))
    return ours


def _place(given: str) -> tuple[str, str, Path]:
    where, equals, folder = given.partition("=")
    model, slash, name = where.partition("/")
    if not (equals and slash) or model not in MODELS or name not in SETS:
        raise UserError(
            f"{given!r}: write MODEL/SET=FOLDER with a model of {', '.join(MODELS)} and a set "
            f"of {', '.join(SETS)}"
        )
    return model, name, Path(folder)


def _method(row: ResultRow) -> str:
    """Return the paper's column of a row of ours: LoRA by decoding, MEDALIGN under beam search.

    Another row's is its own name, which no column has.
    """
    decoding = decoding_method(row)
    if row["adapter"] == LORA:
        return decoding
    if row["adapter"] == MEDALIGN and decoding == "beam":
        return MEDALIGN.lower()
    return row_name(row)


def _columns(name: str, row: ResultRow, folder: Path) -> dict[str, Ours]:
    """Return the paper's columns that a row has a score for; the set answered is `name`."""
    metrics = read_metrics(folder, row_name(row))
    scores: dict[str, Score | MetricScore] = {**row["scores"]}
    if metrics is not None:
        scores |= metrics["scores"]
    columns = {}
    for column, candidates in OURS.items():
        wanted = CHOICE if name == "omnimedvqa" else candidates
        found = next((scores[score] for score in wanted if score in scores), None)
        if found is not None:
            low, high = found["interval"]
            columns[column] = Ours(found["value"], low, high, found["n"], found["trusted"])
    return columns


def _line(model: str, name: str, result: Result) -> str:
    settings, data = result["settings"], result["data"]
    return (
        f"{MODELS[model]}, {name}: {data['items']} items (sha256 {data['sha256'][:12]}), "
        "decoding preset "
        f"{settings['preset']}, at most {settings['max_new_tokens']} tokens, seed "
        f"{settings['seed']}"
    )


class Paper(TypedDict):
    """What `paper_tables.json` holds: numbers by model, set, column, in the order of `methods`."""

    source: str
    methods: list[str]
    numbers: dict[str, dict[str, dict[str, list[float]]]]


def read_paper() -> Paper:
    """Read the paper's numbers."""
    return cast("Paper", json.loads(PAPER.read_text(encoding="utf-8")))


def make_tables(results: Sequence[str] = ()) -> list[Table]:
    """Return the three tables, our scores of `results` in them (see `load_ours`)."""
    paper, ours = read_paper(), load_ours(results)
    return [
        _report_table(1, "huatuogpt-vision", paper, ours),
        _report_table(2, "llava-med", paper, ours),
        _vqa_table(paper, ours),
    ]


def _report_table(number: int, model: str, paper: Paper, ours: Evaluations) -> Table:
    rows = [
        (SETS[name], SCORES[column], _cells(model, name, column, paper, ours))
        for name in REPORT_SETS
        for column in paper["numbers"][model][name]
    ]
    lines = [line for of, name, line in ours.lines if of == model and name in REPORT_SETS]
    notes = [*NOTES["report"], *(NOTES["same"] if number == 1 else ()), *NOTES["all"], *lines]
    caption = f"Report generation, {MODELS[model]} fine-tuned with LoRA"
    return Table(number, caption, paper["methods"], rows, notes)


def _vqa_table(paper: Paper, ours: Evaluations) -> Table:
    heads = [
        (name, column)
        for name in SETS
        if name not in REPORT_SETS
        for column in ("open", "close")
        if column in paper["numbers"]["llava-med"][name]
    ]
    rows = []
    for model, title in MODELS.items():
        columns = [_cells(model, name, column, paper, ours) for name, column in heads]
        rows += [
            (title, method, [column[place] for column in columns])
            for place, method in enumerate(paper["methods"])
        ]
    titles = [f"{SETS[name]} {SCORES[column]}" for name, column in heads]
    lines = [line for _, name, line in ours.lines if name not in REPORT_SETS]
    notes = [*NOTES["vqa"], *NOTES["same"], *NOTES["all"], *lines]
    return Table(3, "Medical visual question answering", titles, rows, notes)


def _cells(model: str, name: str, column: str, paper: Paper, ours: Evaluations) -> list[Cell]:
    """Return one score of one set under every method."""
    numbers = paper["numbers"][model][name][column]
    return [
        Cell(number, number == max(numbers), ours.scores.get((model, name, method.lower(), column)))
        for method, number in zip(paper["methods"], numbers, strict=True)
    ]
