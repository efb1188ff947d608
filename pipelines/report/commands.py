"""`medalign report`.

A run's page, metrics of generated reports, and the paper's tables with ours beside them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from pipelines.documents import write_document
from pipelines.evaluation.metric_options import Metrics, Models, metric_names, model_places
from pipelines.evaluation.result import (
    SCHEMA_NUMBER,
    ItemMetrics,
    MetricsFile,
    metrics_path,
    write_item_metrics,
)
from shared.console import report, say
from shared.errors import UserError

app = typer.Typer(
    help="Reports: a run's page (--run), metrics of generated reports, the paper's tables."
)


@app.callback(invoke_without_command=True)
def page_command(
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Option(help="A run that `medalign evaluate` has scored: any that it accepts."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Default: RUN/report.html.")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="The folder of evaluate's --out. Default: RUN/evaluation.")
    ] = None,
) -> None:
    """Write a run's page (--run), or see the commands below."""
    if context.invoked_subcommand is not None:
        return
    if run is None:
        raise UserError(
            "give --run RUN for a run's page, or a command: metrics, tables (see --help)"
        )
    from pipelines.report.page import write_report

    say(f"report: {write_report(run, out, evaluation)}")


@app.command("metrics")
def metrics_command(
    predictions: Annotated[
        Path,
        typer.Argument(
            help="Answers (.jsonl, .json, .csv), or an evaluation folder: all of its rows."
        ),
    ],
    references: Annotated[
        Path | None,
        typer.Option(
            help="References, where the predictions do not hold them: data set file or .csv."
        ),
    ] = None,
    only: Metrics = None,
    model: Models = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the result here; a folder's rows go to FOLDER/metrics/."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Score generated reports: BLEU, ROUGE-L, METEOR, BERTScore, CheXbert, RadGraph, RaTEScore.

    A metric whose model was not named is listed with the way to get it; the others run.
    """
    from pipelines.evaluation.predictions import load_reports
    from pipelines.metrics.reports import report_values, summarised

    names, models = metric_names(only), model_places(model or ())
    results: dict[str, MetricsFile] = {}
    for file in _answer_files(predictions):
        reports = load_reports(file, references)
        values = report_values(reports.pairs, names, models)
        results[file.stem] = {
            "schema": SCHEMA_NUMBER,
            "predictions": str(file),
            "reports": len(reports.ids),
            **summarised(values, reports.clusters),
        }
        if predictions.is_dir():
            scores = values.items(len(reports.ids))
            items = [
                ItemMetrics(id=name, scores=one)
                for name, one in zip(reports.ids, scores, strict=True)
            ]
            write_item_metrics(predictions, file.stem, items)
            write_document(metrics_path(predictions, file.stem), results[file.stem])
    shown: Mapping[str, object] = (
        {"rows": results} if predictions.is_dir() else next(iter(results.values()))
    )
    if out is not None:
        write_document(out, shown)
    report(shown, as_json, _metric_lines(results))


@app.command("tables")
def tables_command(
    out: Annotated[Path, typer.Option(help="Folder for tables.html, tables.md and tables.tex.")],
    results: Annotated[
        list[str] | None,
        typer.Option(
            help="MODEL/SET=FOLDER of an evaluation, e.g. llava-med/slake=runs/slake/evaluation. "
            "Models: llava-med, huatuogpt-vision; sets: names of `medalign data list`. Again for "
            "each evaluation."
        ),
    ] = None,
) -> None:
    """Render the paper's Tables 1 to 3 with our numbers beside them."""
    from pipelines.report.table_formats import write_tables

    for path in write_tables(out, results or ()):
        say(str(path))


def _answer_files(predictions: Path) -> list[Path]:
    """Return the file itself, or the answers of every row of an evaluation folder."""
    if not predictions.is_dir():
        return [predictions]
    files = sorted((predictions / "answers").glob("*.jsonl"))
    if not files:
        raise UserError(
            f"{predictions} holds no answers/*.jsonl; give the folder that `medalign evaluate` "
            "wrote"
        )
    return files


def _metric_lines(results: Mapping[str, MetricsFile]) -> Iterator[str]:
    for name, result in results.items():
        yield f"{name}: {result['reports']} reports"
        for score, found in result["scores"].items():
            low, high = found["interval"]
            value = f"{100 * found['value']:6.2f}"
            if found["trusted"]:
                value += f" [{100 * low:.2f}, {100 * high:.2f}]"
            counts = f"n={found['n']}, {found['clusters']} clusters"
            yield f"  {score:24} {value:24} {found['what']} ({counts})"
        for metric, way in result["not_computed"].items():
            yield f"  {metric:24} not computed: {way}"
