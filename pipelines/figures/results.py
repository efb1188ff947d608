"""The bars of a figure: means with intervals, from evaluations or from a study's results."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.evaluation.arms import find_arms
from pipelines.evaluation.result import FOLDER, RESULT, ResultRow, read_result, row_name
from pipelines.sweep.study import Run, read_study, recipe_file, runs_of, study_file
from pipelines.sweep.tables import ALL, ArmScore, table_of
from shared.errors import UserError, did_you_mean
from shared.recipe import Recipe, load_recipe


class Bar(NamedTuple):
    """The mean of an arm on a score over one kind of question, with its interval.

    `layer`: its distillation layer l; None of an arm without an alignment loss, or unknown.
    """

    arm: str
    score: str
    kind: str
    value: float
    low: float
    high: float
    n: int
    clusters: int
    layer: int | None = None


def bars_of_runs(runs: Sequence[str]) -> list[Bar]:
    """Read evaluated runs: `NAME=RUN`, or `RUN` under the names of its rows.

    Raises
    ------
    UserError
        A run is not evaluated, or two rows have one name.
    """
    found: dict[str, list[Bar]] = {}
    for text in runs:
        name, equals, place = text.partition("=")
        run = Path(place if equals else text)
        file = run / FOLDER / RESULT if (run / FOLDER / RESULT).is_file() else run / RESULT
        if not file.is_file():
            raise UserError(f"{run} has no evaluation; `medalign evaluate --run {run} --data FILE`")
        rows = read_result(file)["rows"]
        layers = _layers(run)
        for row in rows:
            own = row_name(row)
            if equals:
                own = name if len(rows) == 1 else f"{name}, {own}"
            if own in found:
                raise UserError(f"two rows are called {own}; name the runs: --run NAME={run}")
            found[own] = _bars_of(row, own, layers.get(row["adapter"]))
    return [bar for bars in found.values() for bar in bars]


def _bars_of(row: ResultRow, name: str, layer: int | None) -> list[Bar]:
    bars = []
    for score, one in row["scores"].items():
        low, high = one["interval"]
        bars.append(
            Bar(name, score, ALL, one["value"], low, high, one["n"], one["clusters"], layer)
        )
    return bars


def _layers(run: Path) -> dict[str, int]:
    """Return the layer of each arm that has an alignment loss and a recipe."""
    try:
        arms = find_arms(run)
    except UserError:
        return {}  # an evaluation folder alone
    recipes = {
        name: load_recipe(folder / "recipe.yaml")
        for name, folder in arms.items()
        if (folder / "recipe.yaml").is_file()
    }
    return {name: min(one.losses.layers) for name, one in recipes.items() if one.losses.aligned}


def bars_of_study(study: Path, results: Path) -> list[Bar]:
    """Read the finished runs of a study (`medalign sweep`), pooled over its parts.

    Raises
    ------
    UserError
        No such study, nothing of it is finished, its arms are finished over different parts, or its
        parts are data sets, which have no score together.
    """
    file = study_file(study)
    read = read_study(file)
    if read.sets:
        raise UserError(
            f"the parts of {read.name} are data sets: they have a table each (`medalign sweep "
            f"{study} --show`) and no bars together"
        )
    runs = runs_of(read, file)
    table = table_of(read, runs, results)
    if not table.finished:
        raise UserError(f"{results} has no finished run of {read.name}; `medalign sweep {study}`")
    _check_same_parts(table.scores)
    layers = _layers_of(runs, load_recipe(recipe_file(read, file, read.parts[0])))
    return [
        Bar(one.arm, one.score, one.kind, *one.interval, layers.get(one.arm))
        for one in table.scores
    ]


def _check_same_parts(scores: Sequence[ArmScore]) -> None:
    """Refuse bars over other units beside each other: they differ by more than their arms."""
    parts = {one.arm: sorted(one.parts) for one in scores if one.parts}
    for arm, own in parts.items():
        other = next((name for name, found in parts.items() if found != own), None)
        if other is not None:
            raise UserError(
                f"{arm} is finished in {', '.join(own)} and {other} in {', '.join(parts[other])}: "
                "their bars would be over different items; finish the study (`medalign sweep`)"
            )


def _layers_of(runs: Sequence[Run], recipe: Recipe) -> dict[str, int]:
    """Return the layer of each arm of a study that has an alignment loss."""
    losses = recipe.losses
    found = {}
    for run in runs:
        weights = [
            run.values.get(f"losses.{name}", getattr(losses, name)) for name in ("alpha", "beta")
        ]
        layer = run.values.get("losses.layer", min(losses.layers))
        if isinstance(layer, int) and any(weights):
            found[run.arm] = layer
    return found


def chosen(
    bars: Sequence[Bar], scores: Sequence[str], arms: Sequence[str], kind: str | None
) -> list[Bar]:
    """Keep the scores, arms and kind that are asked for, in the order of `arms` where given.

    Raises
    ------
    UserError
        One of them is not there.
    """
    kinds = [kind] if kind else [ALL]
    for asked, field in ((scores, "score"), (arms, "arm"), (kinds, "kind")):
        there = list(dict.fromkeys(str(getattr(bar, field)) for bar in bars))
        for one in asked:
            if one not in there:
                raise UserError(f"no {field} {one}; {did_you_mean(one, there, ', '.join(there))}")
    kept = [
        bar
        for bar in bars
        if bar.kind in kinds
        and (not scores or bar.score in scores)
        and (not arms or bar.arm in arms)
    ]
    return sorted(kept, key=lambda bar: arms.index(bar.arm)) if arms else kept
