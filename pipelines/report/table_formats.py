"""The paper's tables as HTML, Markdown and LaTeX; a cell that was not run says so."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.report.tables import Ours, Table, make_tables, read_paper

MISSING = "not run here"


def shown(ours: Ours | None) -> str:
    """Return one of our scores in points with its interval and denominator.

    Or that it was not run.
    """
    if ours is None:
        return MISSING
    if not ours.trusted:
        return f"{100 * ours.value:.2f} n={ours.n}, too few clusters for an interval"
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
    return environment.get_template("tables.html").render(
        tables=tables, source=read_paper()["source"], missing=MISSING
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
