"""From what the command names to an explorer: the run, its evaluation, store and regions."""

from pathlib import Path

from pipelines.evaluation.arms import find_arms
from pipelines.evaluation.reading import answered_root, evaluation_of, recipe_of
from pipelines.explore.explorer import Explorer
from pipelines.explore.questions import open_questions
from pipelines.explore.students import Students
from pipelines.explore.table import Table
from pipelines.explore.targets import Targets, open_targets
from pipelines.regions.reading import read_regions
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.recipe import Recipe


def open_explorer(
    run: Path,
    evaluation: Path,
    *,
    store: str | None = None,
    teacher: str | None = None,
    grid: Grid | None = None,
    regions: Path | None = None,
    image_root: Path | None = None,
    device: str | None = None,
    query: Path | None = None,
    encoder: str | None = None,
    answers: bool = False,
    weights: str | None = None,
    tokenizer: str | None = None,
) -> Explorer:
    """Open a run and its evaluation; lists, images, targets and models are read when asked for.

    Parameters
    ----------
    run, evaluation
        What was evaluated, and the folder that `medalign evaluate` wrote.
    store, teacher, grid
        The targets of its images: default, those that the run's recipe names.
    regions
        A file or folder of regions (`pipelines.regions.reading`).
    image_root
        Folder of the images, if not where the evaluation found them.
    device
        Of a model that is asked for.
    query, encoder
        A file of `cache query fit`, by which questions have maps, and its sentence encoder.
    answers
        Load the run's model, which answers questions that are typed in.
    weights, tokenizer
        Of the text tower of a store that was built with `--query`, for questions whose embeddings
        it does not keep.

    Raises
    ------
    UserError
        No evaluation, an answers file that is missing, a store in which nothing fits, or no file
        of regions.
    """
    result = evaluation_of(run, evaluation)
    notes: list[str] = []
    try:
        arms = find_arms(run)
    except UserError as error:
        arms = {}
        notes.append(f"no model of this run can be asked: {error}")
    recipe = recipe_of(arms)
    targets = _targets(store, recipe, teacher, grid, notes)
    base = result["settings"].get("base")
    known = None if regions is None else read_regions(regions)
    students = Students(arms, evaluation, recipe, base, device)
    questions = open_questions(targets, students, query, encoder, answers, weights, tokenizer)
    return Explorer(
        run.resolve().name,
        result,
        Table(evaluation, result),
        image_root or answered_root(result, recipe),
        students,
        targets,
        known,
        "pad" if recipe is None else recipe.data.geometry,
        notes,
        questions,
    )


def _targets(
    store: str | None,
    recipe: Recipe | None,
    teacher: str | None,
    grid: Grid | None,
    notes: list[str],
) -> Targets | None:
    """Open the store that was named, or the recipe's if it is there."""
    if store is not None:
        return open_targets(store, recipe, teacher, grid)
    if recipe is None or recipe.targets.store is None:
        notes.append("no store was named (--store): no teacher's map and no similarity")
        return None
    try:
        return open_targets(recipe.targets.store, recipe, teacher, grid)
    except UserError as error:
        notes.append(f"no teacher's map and no similarity: {error}")
        return None
