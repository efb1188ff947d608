"""The one meeting point of the two stages.

Images of a data set joined with the store's targets by content key.

K teachers, N patches.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.console import note, track, warn
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.imaging.images import ImageReference
from shared.imaging.keys import content_keys as remembered_keys
from shared.processes import is_main_process
from shared.recipe import Recipe
from shared.records import Record
from shared.targets import Target, TargetStore
from shared.targets.choice import fitting_namespaces
from shared.targets.maps import map_key, maps_of

Array = NDArray[np.generic]  # float16, float32 or uint8
ComputeTargets = Callable[[Sequence[ImageReference]], Iterable[Target]]


class Targets(NamedTuple):
    """One image's targets of every teacher, K of them."""

    similarity: Array  # (K, N(N-1)/2)
    attention: Array | None  # (K, N); None where one of the stores holds S_e alone
    coverage: Array  # (K, N) uint8


class Join:
    """Looks an image's targets up.

    In the stores, or among those computed because the stores lack them. `questions` is the store of
    maps for questions, where the run trains with them.
    """

    def __init__(
        self,
        keys: Mapping[ImageReference, bytes],
        stores: Sequence[TargetStore],
        computed: Mapping[bytes, Targets],
        questions: TargetStore | None = None,
    ) -> None:
        self.keys, self.stores, self.computed = keys, list(stores), computed
        self.questions = questions

    def get(self, reference: ImageReference) -> Targets | None:
        """Return the targets of one image; None where the run trains it without."""
        key = self.keys[reference]
        if key in self.computed:
            return self.computed[key]
        if not all(key in store for store in self.stores):
            return None
        return stack([store[key] for store in self.stores])

    def maps(self, reference: ImageReference, texts: Sequence[str]) -> list[Array | None]:
        """Return the map (N,) of each question about an image; None where L_att teaches E_a."""
        if self.questions is None:
            return [None for _ in texts]
        return [*maps_of(self.questions, self.keys[reference], texts)]

    def mapped(self, reference: ImageReference, texts: Sequence[str]) -> int:
        """Count the questions about an image that have a map; none is read."""
        if self.questions is None:
            return 0
        return sum(map_key(self.keys[reference], text) in self.questions for text in texts)

    def segments(self, references: Sequence[Sequence[ImageReference]]) -> list[int]:
        """Return the store segment of each sample's first image; -1 where it has none."""
        if not self.stores:
            return [-1] * len(references)
        keys = [self.keys[images[0]] for images in references if images]
        found = iter(self.stores[0].segments_of(keys))
        return [next(found) if images else -1 for images in references]


def stack(targets: Sequence[Target]) -> Targets:
    """Put the targets of several teachers on a leading axis K."""
    attention = [target.attention for target in targets if target.attention is not None]
    return Targets(
        np.stack([target.similarity for target in targets]),
        np.stack(attention) if len(attention) == len(targets) else None,
        np.stack([target.coverage for target in targets]),
    )


def wanted_targets(recipe: Recipe) -> list[tuple[str | None, str | None]]:
    """Return teacher and fingerprint of every namespace that a recipe names; None is any.

    Raises
    ------
    UserError
        No store named, or fingerprints that are not one a teacher.
    """
    section = recipe.targets
    if section.store is None:
        raise UserError(
            "targets.store is not set, but losses.alpha or losses.beta is above 0; name the store "
            "or set both to 0"
        )
    teachers: list[str | None] = (
        [*section.teacher] if isinstance(section.teacher, list) else [section.teacher]
    )
    prints: list[str | None] = (
        [*section.fingerprint] if isinstance(section.fingerprint, list) else [section.fingerprint]
    )
    if section.fingerprint is None:
        prints = [None for _ in teachers]
    if len(prints) != len(teachers):
        raise UserError(
            f"targets.fingerprint lists {len(prints)} for {len(teachers)} teachers; give one per "
            "teacher"
        )
    return list(zip(teachers, prints, strict=True))


def open_stores(recipe: Recipe, grid: Grid) -> list[TargetStore]:
    """Open the namespace of every teacher of the recipe at the student's grid.

    Raises
    ------
    UserError
        No store named, no namespace that fits, fingerprints that are not one a teacher, or
        losses.beta above 0 for a store of S_e alone.
    """
    wanted = wanted_targets(recipe)
    stores = [
        TargetStore.open(str(recipe.targets.store), teacher, fingerprint, grid)
        for teacher, fingerprint in wanted
    ]
    for store in stores:
        if not _has_attention(store, recipe) and is_main_process():
            note(f"L_att is off: {store.namespace.name} holds S_e alone")
        if store.identity.geometry != recipe.data.geometry:
            warn(
                f"teacher {store.identity.teacher} saw images with geometry "
                f"{store.identity.geometry}, the student "
                f"with {recipe.data.geometry}: their patches show different places on images that "
                "are not square"
            )
    return stores


def open_maps(recipe: Recipe, grid: Grid) -> TargetStore | None:
    """Open the maps for questions of a recipe at the student's grid; None where it wants none.

    Raises
    ------
    UserError
        The store holds no maps, or several of them.
    """
    if recipe.losses.attention_target == "image" or not recipe.losses.beta:
        return None
    return TargetStore.open(str(recipe.targets.maps), grid=grid, maps=True)


def _has_attention(store: TargetStore, recipe: Recipe) -> bool:
    """Whether a store holds E_a; one of S_e alone is refused to a recipe that trains L_att."""
    if store.identity.attention == "pooled":
        return True
    if recipe.losses.beta:
        raise UserError(
            f"{store.namespace.name} holds S_e alone (it was built with --attention none), and "
            f"losses.beta={recipe.losses.beta:g} trains L_att: set losses.beta=0, or name a store "
            "with E_a, such as of unimed-l"
        )
    return False


def check_targets(
    keys: Mapping[ImageReference, bytes],
    data: str | Path,
    image_root: Path,
    recipe: Recipe,
    computed: bool,
) -> None:
    """Look images up before a model is loaded, whose grid may choose among several namespaces.

    Parameters
    ----------
    keys
        Content keys of the images of the file `data`.
    computed
        Whether a teacher stands by for `targets.on_missing: compute`.

    Raises
    ------
    UserError
        No namespace of a teacher fits; where one alone does, images that it lacks beyond what
        `targets.on_missing` allows, or losses.beta above 0 where it holds S_e alone.
    """
    stores = []
    for teacher, fingerprint in wanted_targets(recipe):
        fitting = fitting_namespaces(str(recipe.targets.store), teacher, fingerprint)
        if len(fitting) > 1:
            return
        stores.append(TargetStore.open(str(recipe.targets.store), identity=fitting[0].identity))
        _has_attention(stores[-1], recipe)
    missing = [
        reference for reference, key in keys.items() if not all(key in store for store in stores)
    ]
    _check_missing(missing, len(keys), recipe, stores, data, image_root, computed)


def _check_missing(
    missing: Sequence[ImageReference],
    total: int,
    recipe: Recipe,
    stores: Sequence[TargetStore],
    data: str | Path,
    image_root: Path,
    computed: bool,
) -> None:
    """Refuse images without targets beyond what `targets.on_missing` allows."""
    section = recipe.targets
    if missing and section.on_missing == "compute":
        if not computed:
            raise UserError(
                "targets.on_missing=compute needs a teacher: run `medalign student train`, or "
                "`cache build` first"
            )
        if len(stores) > 1:
            raise UserError(
                "targets.on_missing=compute serves one teacher; run `cache build` for several"
            )
    elif missing and not (section.on_missing == "skip" and len(missing) <= section.allow_missing):
        raise UserError(_missing_line(missing, total, recipe, stores, data, image_root))


def join(
    records: Iterable[Record],
    data: str | Path,
    image_root: Path,
    recipe: Recipe,
    stores: Sequence[TargetStore],
    compute_targets: ComputeTargets | None = None,
    questions: TargetStore | None = None,
) -> Join:
    """Find the targets of every image of `records`; read nothing of them yet.

    Parameters
    ----------
    data
        The file that the records come from, for the `cache build` line.
    stores
        One a teacher, from `open_stores`.
    compute_targets
        For `targets.on_missing: compute`: gives the targets of images one by one, at the student's
        grid. A generator drops its teacher at its end, so none is left when training begins.
    questions
        The store of maps for questions, from `open_maps`.

    Raises
    ------
    UserError
        Images that are not there, or images without targets beyond what `targets.on_missing`
        allows: how many, the first three, and the `cache build` line that adds them.
    """
    keys = content_keys(records, image_root)
    missing = [
        reference for reference, key in keys.items() if not all(key in store for store in stores)
    ]
    allowed = compute_targets is not None
    _check_missing(missing, len(keys), recipe, stores, data, image_root, allowed)
    computed: dict[bytes, Targets] = {}
    if missing and compute_targets is not None and recipe.targets.on_missing == "compute":
        found = track(compute_targets(missing), len(missing), "computing missing targets", "images")
        for reference, target in zip(missing, found, strict=True):
            computed[keys[reference]] = stack(
                [target._replace(similarity=target.similarity.astype(np.float16))]
            )
    return Join(keys, stores, computed, questions)


def content_keys(records: Iterable[Record], image_root: Path) -> dict[ImageReference, bytes]:
    """Hash every image that the side index does not know.

    A `UserError` names the files that are not there.
    """
    wanted: dict[ImageReference, str] = {}
    for record in records:
        for reference in record.references(image_root):
            wanted.setdefault(reference, record.id)
    found: dict[ImageReference, bytes] = {}
    absent = []
    hashed = remembered_keys(wanted)
    if len(wanted) > 5000 and is_main_process():
        hashed = track(hashed, len(wanted), "joining images with the store", "images")
    for reference, key in hashed:
        if isinstance(key, bytes):
            found[reference] = key
        else:
            absent.append(f"{reference} (record {wanted[reference]})")
    if absent:
        shown = ", ".join(absent[:3])
        raise UserError(
            f"{len(absent)} of {len(wanted)} images are not there: {shown}; is data.image_root "
            "right?"
        )
    return found


def _missing_line(
    missing: Sequence[ImageReference],
    total: int,
    recipe: Recipe,
    stores: Sequence[TargetStore],
    data: str | Path,
    image_root: Path,
) -> str:
    names = ", ".join(str(reference) for reference in missing[:3])
    lines = " and ".join(build_line(recipe, store, data, image_root) for store in stores)
    limit = (
        f" (targets.allow_missing={recipe.targets.allow_missing})"
        if recipe.targets.on_missing == "skip"
        else ""
    )
    return (
        f"the store lacks {len(missing)} of {total} images{limit}: {names}; add them with: {lines}"
    )


def build_line(recipe: Recipe, store: TargetStore, data: str | Path, image_root: Path) -> str:
    """Return the `cache build` command that adds the images of `data` to `store`'s namespace."""
    identity = store.identity
    flags: dict[str, object] = {
        "teacher": identity.teacher,
        "images": data,
        "image-root": image_root,
        "store": recipe.targets.store,
        "geometry": identity.geometry,
        "grid": f"{store.grid[0]}x{store.grid[1]}",
        "encoding": identity.encoding,
        "precision": identity.precision,
        "features": identity.features,
        "dtype": identity.dtype,
    }
    if identity.attention == "none":
        flags["attention"] = "none"
    if identity.tolerance is not None:
        flags["tolerance"] = identity.tolerance
    return "cache build " + " ".join(
        f"--{name} {shlex.quote(str(value))}" for name, value in flags.items()
    )
