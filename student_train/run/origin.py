"""What a resumed or repeated run was made from, held against what it would be made from now."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from shared.console import warn
from shared.errors import UserError
from shared.recipe import Recipe, load_recipe
from student_train.adapter.files import RECIPE
from student_train.adapter.provenance import (
    PROVENANCE,
    Provenance,
    Teacher,
    check_data,
    read_provenance,
)


class Origin(NamedTuple):
    """The run that is continued or repeated; only what the recipe leaves as it was is in it."""

    folder: Path
    provenance: Provenance


def origin_of(recipe: Recipe, checkpoint: Path | None, repeats: Path | None) -> Origin | None:
    """Find the run that a recipe continues or repeats.

    Parameters
    ----------
    checkpoint
        What is resumed from.
    repeats
        The recipe's file; where it is the one that a run saved, that run is repeated.
    """
    if checkpoint is not None:
        found = read_provenance(checkpoint)
        if found is None:
            warn(
                f"{checkpoint} has no {PROVENANCE}: whether base, data and targets are those it "
                "began with is not checked"
            )
        return None if found is None else Origin(checkpoint, found)
    if repeats is None or repeats.name != RECIPE:
        return None
    found = read_provenance(repeats.parent)
    if found is None:
        return None
    return Origin(repeats.parent, _kept(found, load_recipe(repeats), recipe))


def _kept(found: Provenance, before: Recipe, now: Recipe) -> Provenance:
    """Leave out what an override has changed: it is meant to be another."""
    data = {
        name: file
        for name, file in found["data"].items()
        if getattr(before.data, name.split()[0]) == getattr(now.data, name.split()[0])
    }
    asked = (before.targets.teacher, before.targets.fingerprint)
    same = asked == (now.targets.teacher, now.targets.fingerprint)
    base = found["base"] if before.model == now.model else {"name": "", "weights": ""}
    return {**found, "data": data, "teachers": found["teachers"] if same else [], "base": base}


def with_fingerprints(recipe: Recipe, origin: Origin | None) -> Recipe:
    """Return the recipe with the fingerprints of the run that it continues or repeats.

    A store that several projects share may hold more namespaces than it did.
    """
    teachers = [] if origin is None else origin.provenance["teachers"]
    if not teachers or recipe.targets.fingerprint is not None:
        return recipe
    prints = [one["fingerprint"] for one in teachers]
    named = recipe.targets.teacher
    if len(prints) != (len(named) if isinstance(named, list) else 1):
        return recipe
    section = recipe.targets.model_copy(
        update={"fingerprint": prints if isinstance(named, list) else prints[0]}
    )
    return recipe.model_copy(update={"targets": section})


def check_files(origin: Origin | None, recipe: Recipe) -> None:
    """Refuse data files that have changed."""
    if origin is not None:
        check_data(origin.provenance, recipe, origin.folder)


def check_teachers(origin: Origin | None, teachers: Sequence[Teacher]) -> None:
    """Refuse targets of other namespaces than the run began with."""
    before = [] if origin is None else origin.provenance["teachers"]
    if origin is None or not before or not teachers or list(teachers) == before:
        return
    names = [
        ", ".join(f"{one['teacher']} {one['fingerprint'][:12]}" for one in listed)
        for listed in (before, teachers)
    ]
    raise UserError(
        f"{origin.folder} was trained on the targets {names[0]}, targets.store has {names[1]}; "
        "name the store that holds the former, or begin another output=..."
    )


def checked_weights(origin: Origin | None, recipe: Recipe) -> str:
    """Return the digest of the base model's weights; refuse others than the run began with."""
    from student_train.models.digest import base_digest

    weights = base_digest(recipe.model)
    if origin is None or origin.provenance["base"]["weights"] in ("", weights):
        return weights
    base = origin.provenance["base"]
    raise UserError(
        f"{origin.folder} was trained on a base model of weights {base['weights'][:12]}, "
        f"{recipe.model.path or recipe.model.name} has {weights[:12]} now; put the old weights "
        "back, or begin another run with its own recipe"
    )
