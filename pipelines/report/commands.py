"""`medalign report`.

A run's page, metrics of generated reports, and the paper's tables with ours beside them.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.metrics.metric import MODELS, NAMES
from shared.console import report, say
from shared.errors import UserError

app = typer.Typer(
    help="Reports: a run's page (--run), metrics of generated reports, the paper's tables."
)


@app.callback(invoke_without_command=True)
def page(
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Option(help="A run with lora/ and medalign/ and their evaluation inside."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Default: RUN/report.html.")] = None,
) -> None:
    """Write a run's page (--run), or see the commands below."""
    if context.invoked_subcommand is not None:
        return
    if run is None:
        raise UserError(
            "give --run RUN for a run's page, or a command: metrics, tables (see --help)"
        )
    from pipelines.demo.commands import report as write_page

    write_page(run, out)


@app.command()
def metrics(
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
    only: Annotated[
        str | None,
        typer.Option(
            "--metrics", help=f"Some of {', '.join(NAMES)}, comma-separated. Default: all."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Where a model is: NAME=FOLDER|FILE|HUB-ID, a hub id being the permission to download it. Names: "
            f"{', '.join(MODELS)}."
        ),
    ] = None,
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
    from pipelines.metrics.reports import score_reports

    names = [name.strip() for name in only.split(",")] if only else list(NAMES)
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise UserError(f"no metric is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    models = {}
    for given in model or ():
        key, equals, value = given.partition("=")
        if not (equals and value) or key not in MODELS:
            raise UserError(f"--model {given}: write NAME=PLACE with a name of {', '.join(MODELS)}")
        models[key] = value
    files = (
        sorted((predictions / "answers").glob("*.jsonl")) if predictions.is_dir() else [predictions]
    )
    if not files:
        raise UserError(
            f"{predictions} holds no answers/*.jsonl; give the folder that `medalign evaluate` "
            "wrote"
        )
    results = {}
    for file in files:
        reports = load_reports(file, references)
        result = {"predictions": str(file), "reports": len(reports.ids)}
        result |= score_reports(reports.pairs, reports.images, names, models)
        results[file.stem] = result
        if predictions.is_dir():
            _write(predictions / "metrics" / f"{file.stem}.json", result)
    shown = next(iter(results.values())) if not predictions.is_dir() else {"rows": results}
    if out is not None:
        _write(out, shown)
    report(shown, as_json, _metric_lines(results))


@app.command()
def tables(
    out: Annotated[Path, typer.Option(help="Folder for tables.html, tables.md and tables.tex.")],
    results: Annotated[
        list[str] | None,
        typer.Option(
            help="MODEL/SET=FOLDER of an evaluation, e.g. llava-med/slake=runs/slake/evaluation. Models: llava-med, "
            "huatuogpt-vision; sets: names of `medalign data list`. Again for each evaluation."
        ),
    ] = None,
) -> None:
    """Render the paper's Tables 1 to 3 with our numbers beside them."""
    from pipelines.report.tables import write_tables

    for path in write_tables(out, results or ()):
        say(str(path))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _metric_lines(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, result in results.items():
        yield f"{name}: {result['reports']} reports"
        for score, found in result["scores"].items():
            low, high = found["interval"]
            value = f"{100 * found['value']:6.2f} [{100 * low:.2f}, {100 * high:.2f}]"
            yield f"  {score:24} {value:24} {found['what']} (n={found['n']}, {found['images']} images)"
        for metric, way in result["not_computed"].items():
            yield f"  {metric:24} not computed: {way}"
