"""Tables 1 to 3 of the paper with our numbers beside them; a cell that was not run says so."""

from collections.abc import Sequence
from typing import NamedTuple

from pipelines.report.marks import LEGEND
from pipelines.report.ours import Evaluations, Ours, load_ours
from pipelines.report.paper import MODELS, REPORT_SETS, SCORES, SETS, Paper, read_paper

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
        LEGEND,
        "The paper gives no intervals. Ours are 95% intervals over clusters (patients or images), "
        "with the number of items n.",
    ),
}


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
    found = [ours.scores.get((model, name, method.lower(), column)) for method in paper["methods"]]
    top = max((one.value for one in found if one is not None), default=None)
    several = len({one.source for one in ours.scores.values()}) > 1
    return [
        Cell(
            number,
            number == max(numbers),
            one and one._replace(best=one.value == top, source=one.source if several else ""),
        )
        for number, one in zip(numbers, found, strict=True)
    ]
