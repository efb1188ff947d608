"""The paper's tables as HTML, Markdown and LaTeX (`latex_tables`); what was not run says so."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.report.latex_tables import latex
from pipelines.report.ours import Ours
from pipelines.report.paper import read_paper
from pipelines.report.tables import Table, make_tables
from shared.files import check_writable

MISSING = "not run here"


def shown(ours: Ours | None) -> str:
    """Return one of our scores in points with its interval, denominator, mark and folder's letter.

    The best in bold. Or that it was not run.
    """
    if ours is None:
        return MISSING
    value = f"{100 * ours.value:.2f}"
    value = f"**{value}**" if ours.best else value
    interval = (
        f"[{100 * ours.low:.1f}, {100 * ours.high:.1f}] n={ours.n}"
        if ours.trusted
        else f"n={ours.n}, too few clusters for an interval"
    )
    return " ".join(filter(None, [f"{value}{ours.mark}", interval, ours.source]))


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


FORMATS = {"html": html, "md": markdown, "tex": latex}


def write_tables(out: Path, results: Sequence[str] = ()) -> list[Path]:
    """Write tables.html, tables.md and tables.tex into `out`."""
    check_writable(out, "choose another --out")
    tables = make_tables(results)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix, render in FORMATS.items():
        path = out / f"tables.{suffix}"
        path.write_text(render(tables).rstrip("\n") + "\n", encoding="utf-8")
        written.append(path)
    return written
