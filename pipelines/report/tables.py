"""Tables 1 to 3 of the paper with our numbers beside them, as HTML, Markdown and LaTeX.

The paper's numbers are data (`paper_tables.json`). Ours come from evaluation folders:
`result.json`, and `metrics/` beside it for reports (`medalign report metrics`). A cell that was not
run says so.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.evaluation.run import answers_path
from shared.errors import UserError

MISSING = "not run here"
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
        "percentages fit the yes/no questions alone (355 of SLAKE's 416 closed ones); ours count "
        "these too.",
        "The authors' splits of IU-Xray and OmniMedVQA are not published; ours are drawn by image "
        "with a seed.",
    ),
    "same": (
        "The paper's columns VCD and DAMRO are identical in this table to the last digit: in the "
        "authors' code neither "
        "contrasts anything. Ours do, so these columns are not expected to agree.",
    ),
    "all": (
        "The paper gives no intervals. Ours are 95% bootstrap intervals over images, with the "
        "number of items n.",
    ),
}


class Ours(NamedTuple):
    """One of our scores: value and interval in [0, 1], over `n` items."""

    value: float
    low: float
    high: float
    n: int


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


def load_ours(
    results: Sequence[str],
) -> tuple[dict[tuple[str, str, str, str], Ours], list[tuple[str, str, str]]]:
    """Read evaluations given as "MODEL/SET=FOLDER".

    Returns ------- Scores by (model, set, method, column), and (model, set, line) of each
    evaluation: what was decoded how.

    Raises
    ------
    UserError
        An unknown model or set, a folder without `result.json`, or an evaluation of another set.
    """
    ours: dict[tuple[str, str, str, str], Ours] = {}
    runs = []
    for given in results:
        where, equals, folder = given.partition("=")
        model, slash, name = where.partition("/")
        if not (equals and slash) or model not in MODELS or name not in SETS:
            raise UserError(
                f"{given!r}: write MODEL/SET=FOLDER with a model of {', '.join(MODELS)} and a set "
                f"of {', '.join(SETS)}"
            )
        file = Path(folder) / "result.json"
        if not file.is_file():
            raise UserError(
                f"{folder} holds no result.json; give the folder that `medalign evaluate` wrote"
            )
        result = json.loads(file.read_text(encoding="utf-8"))
        if result["data"].get("set") not in (None, name):
            raise UserError(
                f"{given!r}: that evaluation is of {result['data']['set']}, not of {name}"
            )
        for row in result["rows"]:
            method = _method(row)
            if method is None:
                continue
            scores = row["scores"] | _report_scores(Path(folder), row["method"])
            for column, candidates in OURS.items():
                found = next(
                    (scores[score] for score in _candidates(name, candidates) if score in scores),
                    None,
                )
                if found is not None:
                    low, high = found["interval"]
                    ours[model, name, method, column] = Ours(found["value"], low, high, found["n"])
        settings, data = result["settings"], result["data"]
        line = (
            f"{MODELS[model]}, {name}: {data['items']} items (sha256 {data['sha256'][:12]}), "
            "decoding preset "
            f"{settings['preset']}, at most {settings['max_new_tokens']} tokens, seed "
            f"{settings['seed']}"
        )
        runs.append((model, name, line))
    return ours, runs


def _candidates(name: str, candidates: Sequence[str]) -> Sequence[str]:
    return CHOICE if name == "omnimedvqa" else candidates


def _method(row: Mapping[str, Any]) -> str | None:
    """Return the paper's column of a row of ours: LoRA by decoding, MEDALIGN under beam search.

    None for another.
    """
    decoding = row["decoding"]["method"]
    if row["adapter"] == "LoRA":
        return str(decoding)
    return "medalign" if row["adapter"] == "MEDALIGN" and decoding == "beam" else None


def _report_scores(folder: Path, row: str) -> dict[str, Any]:
    file = folder / "metrics" / f"{answers_path(folder, row).stem}.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))["scores"]) if file.is_file() else {}


def make_tables(results: Sequence[str] = ()) -> list[Table]:
    """Return the three tables, our scores of `results` in them (see `load_ours`)."""
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    ours, runs = load_ours(results)
    methods: list[str] = paper["methods"]

    def cells(model: str, name: str, column: str) -> list[Cell]:
        numbers = paper["numbers"][model][name][column]
        return [
            Cell(number, number == max(numbers), ours.get((model, name, method.lower(), column)))
            for method, number in zip(methods, numbers, strict=True)
        ]

    tables = []
    for number, model in ((1, "huatuogpt-vision"), (2, "llava-med")):
        rows = [
            (SETS[name], SCORES[column], cells(model, name, column))
            for name in REPORT_SETS
            for column in paper["numbers"][model][name]
        ]
        lines = [line for of, name, line in runs if of == model and name in REPORT_SETS]
        notes = [*NOTES["report"], *(NOTES["same"] if number == 1 else ()), *NOTES["all"], *lines]
        tables.append(
            Table(
                number,
                f"Report generation, {MODELS[model]} fine-tuned with LoRA",
                methods,
                rows,
                notes,
            )
        )
    heads = [
        (name, column) for name in SETS if name not in REPORT_SETS for column in ("open", "close")
    ]
    heads = [
        (name, column) for name, column in heads if column in paper["numbers"]["llava-med"][name]
    ]
    rows = []
    for model, title in MODELS.items():
        columns = [cells(model, name, column) for name, column in heads]
        rows += [
            (title, method, [column[place] for column in columns])
            for place, method in enumerate(methods)
        ]
    titles = [f"{SETS[name]} {SCORES[column]}" for name, column in heads]
    lines = [line for _, name, line in runs if name not in REPORT_SETS]
    notes = [*NOTES["vqa"], *NOTES["same"], *NOTES["all"], *lines]
    tables.append(Table(3, "Medical visual question answering", titles, rows, notes))
    return tables


def shown(ours: Ours | None) -> str:
    """Return one of our scores in points with its interval and denominator, or that it was not run."""
    if ours is None:
        return MISSING
    return f"{100 * ours.value:.2f} [{100 * ours.low:.1f}, {100 * ours.high:.1f}] n={ours.n}"


def markdown(tables: Sequence[Table]) -> str:
    """Render as GitHub Markdown: two lines a row, the paper's and ours."""
    lines = []
    for table in tables:
        lines += [f"## Table {table.number}. {table.caption}", ""]
        lines.append("| | | |" + "".join(f" {column} |" for column in table.columns))
        lines.append("|---|---|---|" + "---:|" * len(table.columns))
        for group, name, cells in table.rows:
            paper = "".join(
                f" **{cell.paper:.2f}** |" if cell.best else f" {cell.paper:.2f} |"
                for cell in cells
            )
            lines.append(f"| {group} | {name} | paper |{paper}")
            lines.append("| | | here |" + "".join(f" {shown(cell.ours)} |" for cell in cells))
        lines += ["", *(f"- {note}" for note in table.notes), ""]
    return "\n".join(lines)


def latex(tables: Sequence[Table]) -> str:
    """Render as LaTeX (packages booktabs and graphicx): two lines a row, the paper's and ours."""
    lines = ["% needs \\usepackage{booktabs,graphicx}"]
    for table in tables:
        lines += [r"\begin{table*}", r"\centering", r"\resizebox{\textwidth}{!}{%"]
        lines.append(r"\begin{tabular}{lll" + "r" * len(table.columns) + "}")
        lines += [r"\toprule", " & & & " + " & ".join(map(_tex, table.columns)) + r" \\"]
        previous = None
        for group, name, cells in table.rows:
            if group != previous:
                lines.append(r"\midrule")
            paper = [
                rf"\textbf{{{cell.paper:.2f}}}" if cell.best else f"{cell.paper:.2f}"
                for cell in cells
            ]
            title = _tex(group) if group != previous else ""
            lines.append(f"{title} & {_tex(name)} & paper & " + " & ".join(paper) + r" \\")
            lines.append(
                " & & here & " + " & ".join(_tex(shown(cell.ours)) for cell in cells) + r" \\"
            )
            previous = group
        lines += [r"\bottomrule", r"\end{tabular}}"]
        caption = f"{table.caption}. {' '.join(table.notes)}"
        lines += [rf"\caption{{{_tex(caption)}}}", r"\end{table*}", ""]
    return "\n".join(lines)


def html(tables: Sequence[Table]) -> str:
    """Render as one page that needs nothing else."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    source = json.loads(PAPER.read_text(encoding="utf-8"))["source"]
    return environment.get_template("tables.html").render(
        tables=tables, source=source, missing=MISSING
    )


def _tex(text: str) -> str:
    special = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "“": "``", "”": "''", "$": r"\$"}
    return "".join(special.get(letter, letter) for letter in text)


FORMATS = {"html": html, "md": markdown, "tex": latex}


def write_tables(out: Path, results: Sequence[str] = ()) -> list[Path]:
    """Write tables.html, tables.md and tables.tex into `out`."""
    tables = make_tables(results)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix, render in FORMATS.items():
        path = out / f"tables.{suffix}"
        path.write_text(render(tables).rstrip("\n") + "\n", encoding="utf-8")
        written.append(path)
    return written
