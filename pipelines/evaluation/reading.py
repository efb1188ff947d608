"""An evaluation as a page reads it: its result, the recipe of its run, the folder of its images."""

from collections.abc import Mapping
from pathlib import Path

from pipelines.evaluation.arms import find_arms
from pipelines.evaluation.result import RESULT, Result, read_result
from shared.console import warn
from shared.errors import UserError
from shared.recipe import Recipe, load_recipe


def evaluation_of(run: Path, folder: Path) -> Result:
    """Read the result of a run's evaluation, which lies in `folder`.

    Raises
    ------
    UserError
        There is none, none that this version reads, or it is one of other adapters.
    """
    path = folder / RESULT
    if not path.is_file():
        raise UserError(
            f"no evaluation at {path}; run `medalign evaluate --run {run} --data FILE` first, or "
            "name the folder of its --out with --evaluation"
        )
    result = read_result(path)
    _check_same_run(run, folder, result)
    return result


def _check_same_run(run: Path, folder: Path, result: Result) -> None:
    """Refuse the answers of another run: a page would show them under this one's losses."""
    try:
        arms = find_arms(run)
    except UserError:
        return  # the answers alone are here
    adapters = result["settings"]["adapters"]
    answered = {name: place for name, place in adapters.items() if name in arms}
    if not answered:
        others = ", ".join(
            f"{name} ({place})" for name, place in result["settings"]["adapters"].items()
        )
        raise UserError(
            f"{folder} holds the answers of {others}, not of {', '.join(arms)} in {run}"
        )
    for name, place in answered.items():
        if Path(place).name != arms[name].resolve().name:
            warn(f"{folder} holds the answers of {name} in {place}; {run} has {arms[name]}")


def recipe_of(arms: Mapping[str, Path]) -> Recipe | None:
    """Return the recipe that speaks for a run, its last arm's; a plain model has none."""
    if not arms:
        return None
    last = list(arms.values())[-1] / "recipe.yaml"
    return load_recipe(last) if last.is_file() else None


def answered_root(result: Result, recipe: Recipe | None) -> Path:
    """Return the folder of images that an evaluation kept; older ones kept none."""
    data = Path(result["data"]["file"])
    kept = result["data"].get("image_root")
    if kept is None and recipe is not None and recipe.evaluation.data is not None:
        same = Path(recipe.evaluation.data) == data
        kept = recipe.evaluation.image_root if same else None
    return data.parent if kept is None else Path(kept)
