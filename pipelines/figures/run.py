"""What a run's figures need: its students before and after, observed; its expert's features."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipelines.evaluation.observed import Seen, check_layers, observe
from pipelines.figures.attention import Looked
from pipelines.figures.embedding import Labelled, Panel
from pipelines.regions.features import teacher_features
from pipelines.regions.held import Held, priors_of
from pipelines.regions.measuring import BEFORE
from pipelines.regions.separability import region_places
from pipelines.regions.sources import Sources, Trained, sources_of, trained_of
from shared.console import track
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.targets import TargetStore
from shared.vocabulary import Geometry

if TYPE_CHECKING:
    from pipelines.evaluation.loading import Loaded


class Given(NamedTuple):
    """What the command line says of a run's figures; None: what its recipes name."""

    run: Path
    regions: Path
    data: Path | None = None
    image_root: Path | None = None
    store: str | None = None
    teacher: str | None = None
    where: Mapping[str, str] | None = None
    sample: int = 100
    seed: int = 0


class Observed(NamedTuple):
    """A run's chosen images, all with regions, and what each of its students held of them.

    `seen`: by `before` and the arms' names, one entry an image. `every`: all images of the data,
    from which the prior is made.
    """

    trained: Trained
    grid: Grid
    layers: list[int]
    store: TargetStore
    held: list[Held]
    every: list[Held]
    seen: dict[str, list[Seen]]


def parse_where(text: str | None) -> dict[str, str]:
    """Read `modality=CT,location=Abdomen`."""
    found = {}
    for one in (text or "").split(",") if text else ():
        field, equals, value = one.partition("=")
        if not (field.strip() and equals):
            raise UserError(f"--where {text}: write FIELD=VALUE, joined by commas")
        found[field.strip()] = value.strip()
    return found


def observe_run(given: Given, layers: Sequence[int] | None, *, some: bool = False) -> Observed:
    """Choose images with regions and show each to the student before and after.

    Parameters
    ----------
    layers
        Of the decoder, 0-based; None: all.
    some
        None then means: the first, l, and the last.

    Raises
    ------
    UserError
        As `sources_of`; no chosen image has regions; a layer that the model does not have.
    """
    from pipelines.evaluation.loading import load_base_student, load_student

    trained = trained_of(given.run)
    student: Loaded = load_base_student(list(trained.arms.values())[-1], trained.recipe)
    grid = student.processor.grid
    last = len(student.model.get_decoder().layers) - 1
    few = [0, trained.layer, last] if some else range(last + 1)
    wanted = list(dict.fromkeys(few if layers is None else layers))
    check_layers(student.model, wanted)
    every = _sources(trained, grid, given)
    chosen = every.held if not given.where else _sources(trained, grid, given, given.where).held
    chosen = [one for one in chosen if one.asked]
    if not chosen:
        raise UserError(f"no chosen image is asked about a region of {given.regions}")
    order = np.random.default_rng(given.seed).permutation(len(chosen))[: given.sample]
    chosen = [chosen[place] for place in sorted(order.tolist())]
    seen = {BEFORE: _show(student, chosen, wanted, BEFORE)}
    del student
    for name, folder in trained.arms.items():
        seen[name] = _show(load_student(folder, named=False), chosen, wanted, name)
    return Observed(trained, grid, wanted, every.store, chosen, every.held, seen)


def _sources(
    trained: Trained, grid: Grid, given: Given, where: Mapping[str, str] | None = None
) -> Sources:
    return sources_of(
        trained,
        grid,
        data=given.data,
        image_root=given.image_root,
        store=given.store,
        regions=given.regions,
        teacher=given.teacher,
        where=where,
    )


def _show(student: "Loaded", held: Sequence[Held], layers: Sequence[int], title: str) -> list[Seen]:
    return [
        observe(student, one.record.question, [one.reference], layers, system=one.record.system)
        for one in track(held, len(held), title, "images")
    ]


def separability_panels(observed: Observed, weights: str | None, device: str) -> list[Panel]:
    """Return a panel for each layer of each student, and one for the expert, encoded again."""
    identity = observed.store.identity
    geometry = observed.trained.recipe.data.geometry
    seen = _labelled(observed, geometry)
    shown = [
        Panel(row, f"layer {layer}", seen, [one.tokens[layer] for one in found])
        for row, found in observed.seen.items()
        for layer in observed.layers
    ]
    references = [one.reference for one in observed.held]
    features = teacher_features(identity, references, observed.grid, weights=weights, device=device)
    # An expert that saw its images otherwise has its patches at other places.
    own = seen if identity.geometry == geometry else _labelled(observed, identity.geometry)
    return [*shown, Panel("", identity.teacher, own, features)]


def _labelled(observed: Observed, geometry: Geometry) -> list[Labelled]:
    regions = [one.regions.regions if one.regions else () for one in observed.held]
    alone = len({region.label for every in regions for region in every}) < 2
    return [
        Labelled(
            one.record.id,
            one.patient,
            region_places(own, one.width, one.height, observed.grid, geometry, alone=alone),
        )
        for one, own in zip(observed.held, regions, strict=True)
    ]


def looked_at(observed: Observed) -> list[Looked]:
    """Return the maps of each image: students at layer l and over all layers, expert, prior."""
    from shared.imaging.images import open_image

    layer = observed.trained.layer
    prior = priors_of(observed.held, observed.every, observed.grid)
    found = []
    for number, one in enumerate(observed.held):
        shares, centres = one.asked_places(observed.grid)
        every = {name: seen[number].attention for name, seen in observed.seen.items()}
        rows = {
            f"layer {layer}": {name: maps[layer] for name, maps in every.items()},
            "all layers": {
                name: np.mean(list(maps.values()), axis=0) for name, maps in every.items()
            },
        }
        beside = {}
        if one.attention is not None:
            beside[f"expert, {observed.store.identity.teacher}"] = np.asarray(one.attention)
        if one.record.id in prior:
            beside["prior"] = prior[one.record.id]
        places = [region.place for region in one.asked]
        picture = np.asarray(open_image(one.reference))
        found.append(
            Looked(
                one.record.id,
                picture,
                places,
                rows,
                beside,
                shares,
                centres,
                one.visible,
                one.geometry,
            )
        )
    return found
