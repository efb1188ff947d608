"""The paper's tables as LaTeX: one table a model, on one page of one column, in 7 pt.

A cell is the paper's number and ours, in points, with our interval below; our best is bold. It
needs `booktabs` alone, and fits a text of 345 pt (article, 10 pt).
"""

from collections.abc import Sequence
from typing import NamedTuple

from pipelines.report.marks import BETTER, WORSE
from pipelines.report.paper import SETS
from pipelines.report.tables import Cell, Table

NOT_RUN = "--"
_SHORT = {  # a blank begins a new line of the heading
    "CheXbert similarity": "CheXbert",
    "VQA-RAD Open": "VQA- RAD Open",
    "VQA-RAD Close": "VQA- RAD Close",
    "PathVQA Open": "Path- VQA Open",
    "PathVQA Close": "Path- VQA Close",
    "IU-Xray Close": "IU- Xray Close",
    "OmniMedVQA Close": "Omni- MedVQA Close",
    "RadGraph (entity + relation) / 2": "RadGraph",
}


class Block(NamedTuple):
    """Methods below each other, scores beside each other."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


def latex(tables: Sequence[Table]) -> str:
    """Render every model's tables."""
    lines = ["% needs \\usepackage{booktabs}; two lines a method: paper / ours, interval of ours"]
    for table in tables:
        for caption, blocks, notes in _models(table):
            lines += _table(caption, blocks, notes)
    return "\n".join(lines)


def _models(table: Table) -> list[tuple[str, list[Block], list[str]]]:
    """Part a table and its notes by model, and turn one whose columns are methods."""
    groups = list(dict.fromkeys(group for group, *_ in table.rows))
    if set(groups) & set(SETS.values()):
        blocks = []
        for group in groups:
            scores = [(name, cells) for of, name, cells in table.rows if of == group]
            rows = [
                (method, [cells[place] for _, cells in scores])
                for place, method in enumerate(table.columns)
            ]
            blocks.append(Block(group, [_SHORT.get(name, name) for name, _ in scores], rows))
        return [(table.caption, blocks, table.notes)]
    return [
        (
            f"{table.caption}, {group}",
            [
                Block(
                    "",
                    [_SHORT.get(name, name) for name in table.columns],
                    [(name, cells) for of, name, cells in table.rows if of == group],
                )
            ],
            [
                note
                for note in table.notes
                if not any(f" {other}, " in note for other in groups if other != group)
            ],
        )
        for group in groups
    ]


def _table(caption: str, blocks: Sequence[Block], notes: Sequence[str]) -> list[str]:
    lines = [r"\begin{table}[p]", r"\centering\scriptsize", r"\setlength{\tabcolsep}{1.5pt}"]
    lines.append(r"\renewcommand{\arraystretch}{0.85}")  # two sets of reports on one page
    lines.append(rf"\caption{{{_tex(caption)}. Paper / ours, in points.}}")
    for block in blocks:
        columns = "@{}l" + "c" * len(block.columns) + "@{}"
        lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        heads = [column.split(" ") for column in block.columns]
        deep = max(len(words) for words in heads)
        for level in range(deep):
            title = _tex(block.title) if level == 0 else ""
            row = [_tex(words[level]) if level < len(words) else "" for words in heads]
            lines.append(" & ".join([title, *row]) + r" \\")
        counts = [_counts(block, place) for place in range(len(block.columns))]
        if any(counts):
            lines.append(" & ".join(["", *counts]) + r" \\")
        lines.append(r"\midrule")
        for method, cells in block.rows:
            lines.append(" & ".join([_tex(method), *map(_numbers, cells)]) + r" \\")
            if any(cell.ours for cell in cells):
                lines.append(" & ".join(["", *map(_interval, cells)]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}\par\smallskip"]
    text = " ".join(_tex(note) for note in [f"{NOT_RUN}: not run here.", *notes])
    lines += [rf"\parbox{{\linewidth}}{{{text}}}", r"\end{table}", ""]
    return lines


def _counts(block: Block, place: int) -> str:
    """Return the number of items of a column, of every row where it differs."""
    found = dict.fromkeys(cells[place].ours.n for _, cells in block.rows if cells[place].ours)  # type: ignore[union-attr]
    return f"n={'/'.join(map(str, found))}" if found else ""


def _numbers(cell: Cell) -> str:
    paper = f"{cell.paper:.1f}"
    if cell.ours is None:
        return f"{paper}/{NOT_RUN}"
    ours = f"{100 * cell.ours.value:.1f}"
    if cell.ours.best:
        ours = rf"\textbf{{{ours}}}"
    mark = {BETTER: "+", WORSE: "-"}.get(cell.ours.mark, "") + cell.ours.source
    # A mark hangs into the gap: eight columns with room for one would be too wide.
    return f"{paper}/{ours}" + (rf"\rlap{{$^{{{mark}}}$}}" if mark else "")


def _interval(cell: Cell) -> str:
    ours = cell.ours
    if ours is None or not ours.trusted:
        return ""
    return f"{100 * ours.low:.1f}--{100 * ours.high:.1f}"


def _tex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$",
        "“": "``", "”": "''", "−": "$-$", "<": "$<$", ">": "$>$", "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}", "{": r"\{", "}": r"\}",
    }  # fmt: skip
    return "".join(special.get(letter, letter) for letter in text)
