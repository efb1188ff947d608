"""An evaluation as a page reads it: its result, the recipe of its run, the folder of its images."""

from collections.abc import Mapping
from pathlib import Path

from pipelines.evaluation.result import RESULT, Result, read_result
from shared.errors import UserError
from shared.recipe import Recipe, load_recipe


def evaluation_of(run: Path, folder: Path) -> Result:
    """Read the result of a run's evaluation, which lies in `folder`.

    Raises
    ------
    UserError
        There is none, or none that this version reads.
    """
    path = folder / RESULT
    if not path.is_file():
        raise UserError(
            f"no evaluation at {path}; run `medalign evaluate --run {run} --data FILE` first, or "
            "name the folder of its --out with --evaluation"
        )
    return read_result(path)


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
