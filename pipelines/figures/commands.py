"""`medalign figures NAME`: the paper's figures from finished runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.console import say
from shared.errors import UserError
from teacher_cache.options import DeviceOption, OfTeacherOption, WeightsOption

if TYPE_CHECKING:
    from pipelines.figures.results import Bar

app = typer.Typer(
    help="The paper's figures from finished runs: PNG, SVG, and the numbers as CSV.",
    no_args_is_help=True,
)

RunOption = Annotated[Path, typer.Option(help="A run: an adapter folder, or a demo's.")]
RegionsOption = Annotated[Path, typer.Option(help="Boxes, or a folder of masks.")]
DataOption = Annotated[
    Path | None, typer.Option(help="Held-out questions; default: the run's evaluation.data.")
]
RootOption = Annotated[Path | None, typer.Option("--image-root", help="Folder of their images.")]
StoreOption = Annotated[
    str | None, typer.Option(help="The expert's targets; default: the run's targets.store.")
]
WhereOption = Annotated[
    str | None, typer.Option(help="FIELD=VALUE,... of the records, such as modality=CT.")
]
SeedOption = Annotated[int, typer.Option(help="Of the images and of everything random.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder; default: RUN/figures.")]
RunsOption = Annotated[
    list[str] | None, typer.Option("--run", help="NAME=RUN, evaluated; again for each run.")
]
StudyOption = Annotated[
    Path | None, typer.Option(help="A study file or a shipped study's name, with --results.")
]
ResultsOption = Annotated[Path | None, typer.Option(help="The study's folder of results.")]
ScoresOption = Annotated[str | None, typer.Option(help="Only these, joined by commas.")]
ArmsOption = Annotated[str | None, typer.Option(help="Only these, in this order, by commas.")]
KindOption = Annotated[str | None, typer.Option(help="Only questions of this kind.")]
BarsOutOption = Annotated[Path, typer.Option(help="Folder that the figure is written to.")]


@app.command("separability")
def separability_command(
    run: RunOption,
    regions: RegionsOption,
    layers: Annotated[
        str | None, typer.Option(help="Decoder layers, such as 0,15,29; default: 0, l, the last.")
    ] = None,
    data: DataOption = None,
    image_root: RootOption = None,
    store: StoreOption = None,
    teacher: OfTeacherOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    where: WhereOption = None,
    sample: Annotated[int, typer.Option(min=2, help="Images.")] = 100,
    perplexity: Annotated[float, typer.Option(min=1, help="Of t-SNE.")] = 30.0,
    seed: SeedOption = 0,
    out: OutOption = None,
) -> None:
    """Fig. 1 and 5: t-SNE of labelled patches by layer, before and after, beside the expert.

    Under each panel: whether a region's nearest neighbour in another patient has its label.
    """
    from pipelines.figures.embedding import draw_separability
    from pipelines.figures.run import Given, observe_run, parse_where, separability_panels
    from pipelines.regions.layers import parse_layers

    given = Given(run, regions, data, image_root, store, teacher, parse_where(where), sample, seed)
    observed = observe_run(given, parse_layers(layers), some=True)
    shown = separability_panels(observed, weights, device)
    folder = out or run / "figures"
    _said(draw_separability(shown, folder, perplexity=perplexity, seed=seed))


@app.command("attention")
def attention_command(
    run: RunOption,
    regions: RegionsOption,
    data: DataOption = None,
    image_root: RootOption = None,
    store: StoreOption = None,
    teacher: OfTeacherOption = None,
    where: WhereOption = None,
    sample: Annotated[int, typer.Option(min=1, help="Images.")] = 2,
    seed: SeedOption = 0,
    out: OutOption = None,
) -> None:
    """Fig. 2 and 6: attention over the image at layer l and over all layers, before and after.

    Beside it the expert's, and the prior, which knows no image. `--where id=NAME` shows one record;
    otherwise images are drawn by the seed.
    """
    from pipelines.figures.attention import draw_attention
    from pipelines.figures.run import Given, looked_at, observe_run, parse_where

    given = Given(run, regions, data, image_root, store, teacher, parse_where(where), sample, seed)
    observed = observe_run(given, None)
    _said(draw_attention(looked_at(observed), observed.grid, out or run / "figures"))


@app.command("ablation")
def ablation_command(
    out: BarsOutOption,
    run: RunsOption = None,
    study: StudyOption = None,
    results: ResultsOption = None,
    scores: ScoresOption = None,
    arms: ArmsOption = None,
    kind: KindOption = None,
) -> None:
    """Fig. 4A and 4B: bars with intervals over the arms of runs or of a study."""
    from pipelines.figures.bars import draw_bars

    _said(draw_bars(_bars(run, study, results, scores, arms, kind), out, "ablation"))


@app.command("experts")
def experts_command(
    out: BarsOutOption,
    run: RunsOption = None,
    study: StudyOption = None,
    results: ResultsOption = None,
    scores: ScoresOption = None,
    arms: ArmsOption = None,
    kind: KindOption = None,
) -> None:
    """Fig. 7A: bars with intervals over experts; give each run its expert's name."""
    from pipelines.figures.bars import draw_bars

    _said(draw_bars(_bars(run, study, results, scores, arms, kind), out, "experts"))


@app.command("layers")
def layers_command(
    out: BarsOutOption,
    run: RunsOption = None,
    study: StudyOption = None,
    results: ResultsOption = None,
    scores: ScoresOption = None,
    arms: ArmsOption = None,
    kind: KindOption = None,
) -> None:
    """Fig. 7B: scores over the distillation layer; an arm without one is a line across."""
    from pipelines.figures.bars import draw_layers

    _said(draw_layers(_bars(run, study, results, scores, arms, kind), out))


def _bars(
    runs: list[str] | None,
    study: Path | None,
    results: Path | None,
    scores: str | None,
    arms: str | None,
    kind: str | None,
) -> "list[Bar]":
    from pipelines.figures.results import bars_of_runs, bars_of_study, chosen

    if bool(runs) == (study is not None):
        raise UserError("give --run NAME=RUN for each run, or --study FILE with --results DIR")
    if runs:
        found = bars_of_runs(runs)
    elif study is not None and results is not None:
        found = bars_of_study(study, results)
    else:
        raise UserError("--study needs --results: the folder of its finished runs' JSON")
    return chosen(found, _split(scores), _split(arms), kind)


def _split(text: str | None) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()] if text else []


def _said(paths: list[Path]) -> None:
    for path in paths:
        say(str(path))
