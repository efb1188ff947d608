"""What a run is measured on: its arms, held-out images, their targets and regions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.evaluation.arms import find_arms
from pipelines.regions.held import Held, held_out
from pipelines.regions.reading import Regions, read_regions
from shared.console import warn
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.recipe import Recipe, load_recipe
from shared.targets import TargetStore


class Trained(NamedTuple):
    """A run's adapter folders and their recipes by the arm's name; all have one layer l."""

    arms: dict[str, Path]
    recipes: dict[str, Recipe]
    layer: int

    @property
    def recipe(self) -> Recipe:
        """Of the last arm: MEDALIGN's where there are two."""
        return list(self.recipes.values())[-1]


class Sources(NamedTuple):
    """The file of questions, the store at the student's grid, one question about each image."""

    data: Path
    store: TargetStore
    held: list[Held]


def trained_of(run: Path) -> Trained:
    """Find the arms of a run: an adapter folder, or one with `lora/` and `medalign/`.

    Raises
    ------
    UserError
        No adapter, or arms of different layers.
    """
    arms = {name: folder for name, folder in find_arms(run).items() if name != "base"}
    if not arms:
        raise UserError(f"{run} holds a plain model; give the output folder of `student train`")
    recipes = {name: load_recipe(folder / "recipe.yaml") for name, folder in arms.items()}
    return Trained(arms, recipes, _one_layer(recipes))


def sources_of(
    trained: Trained,
    grid: Grid,
    *,
    data: Path | None = None,
    image_root: Path | None = None,
    store: str | None = None,
    regions: Path | None = None,
    teacher: str | None = None,
    limit: int | None = None,
    where: Mapping[str, str] | None = None,
) -> Sources:
    """Find what a run is measured on; the arguments stand over what its recipes name.

    Parameters
    ----------
    grid
        The student's.
    where
        Only records whose fields have these values, such as `{"modality": "CT"}`.

    Raises
    ------
    UserError
        No data or store named, no such record, or a missing target.
    """
    evaluation = trained.recipe.evaluation
    if data is None and evaluation.data is None:
        raise UserError("give --data FILE: the run's recipe has no evaluation.data")
    file = data or Path(str(evaluation.data))
    root = image_root or evaluation.image_root
    stores = (one.targets.store for one in trained.recipes.values())
    place = store or next((one for one in stores if one), "")
    if not place:
        raise UserError("give --store STORE: no arm's recipe has targets.store")
    opened = TargetStore.open(place, teacher, grid=grid)
    for name, recipe in trained.recipes.items():
        if recipe.data.geometry != opened.identity.geometry:
            warn(
                f"{opened.namespace.name} saw images with geometry {opened.identity.geometry}, "
                f"{name} with {recipe.data.geometry}: on images that are not square their patches "
                "show different places, and what is measured here compares those"
            )
    known = read_regions(regions) if regions else {}
    held = held_out(file, Path(root) if root else None, opened, known, limit, where)
    if regions is not None:
        _check_matched(held, known, regions, file)
    return Sources(file, opened, held)


def _check_matched(
    held: Sequence[Held], known: Mapping[str, Regions], regions: Path, data: Path
) -> None:
    """Refuse regions of other images, and say where some images have none."""
    matched = sum(one.regions is not None for one in held)
    if not matched:
        raise UserError(
            f"{regions} knows none of the {len(held)} images of {data}: it names "
            f"{next(iter(known), 'none')}, the data set {held[0].record.images[0]}; write both "
            "alike, relative to one folder"
        )
    if matched < len(held):
        warn(f"{regions} knows {matched} of {len(held)} images; the others count for no grounding")


def _one_layer(recipes: Mapping[str, Recipe]) -> int:
    layers = {recipe.losses.layers for recipe in recipes.values()}
    if len(layers) > 1:
        raise UserError("the arms of this run have different layers; measure each by itself")
    return min(next(iter(layers)))
