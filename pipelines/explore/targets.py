"""What the store holds of an image that is looked at: the teacher's map, the row of a patch in S_e.

N student patches.
"""

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from pipelines.regions.query.asking import ask
from pipelines.regions.query.file import Query
from pipelines.regions.query.stored import Stored
from pipelines.report.store_pictures import renormalized
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.imaging.images import ImageReference
from shared.imaging.keys import content_keys
from shared.recipe import Recipe
from shared.targets import Target, TargetStore
from shared.targets.numbers.triangle import triangle_row

_KEPT = 16  # targets in memory: 0.4 MB each on 24 x 24 patches
Weights = NDArray[np.float64]


class Targets:
    """The targets of a store by image; threads may share it."""

    def __init__(self, store: TargetStore) -> None:
        self.grid = Grid(*store.grid)
        self.geometry = store.identity.geometry
        self.teacher = store.identity.teacher
        self.name = store.identity.namespace()
        self._store = store
        self._kept: OrderedDict[ImageReference, Target | None] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, reference: ImageReference) -> Target | None:
        """Read the target of an image; None where the store has none.

        Raises UserError where the image cannot be read or the store is damaged.
        """
        with self._lock:
            if reference not in self._kept:
                self._kept[reference] = self._find(reference)
            self._kept.move_to_end(reference)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[reference]

    def own_query(self, weights: str | None, tokenizer: str | None) -> Stored | None:
        """Return what the store itself keeps to be asked; None where it keeps nothing."""
        if self._store.identity.query is None:
            return None
        return Stored(self._store, weights, tokenizer)

    def check(self, query: Query) -> None:
        """Raise UserError where the store cannot be asked by this query."""
        query.check(self._store.identity, self._store.namespace.name)
        if self._store.identity.encoding != "patches":
            raise UserError(
                f"{self._store.namespace.name} is of the encoding {self._store.identity.encoding}, "
                "of which no query can be asked: build with --encoding patches"
            )

    def asked(
        self, reference: ImageReference, query: Query | Stored, text: str, encoder: str | None
    ) -> Weights:
        """Return the map of an image for a question, (N,), not negative.

        Raises UserError as `of`, and where the store lacks the image.
        """
        key = _key_of(reference)
        if key not in self._store:
            raise UserError("this image is not in the store: no map of a question")
        return np.asarray(ask(query, self._store, key, text, encoder), np.float64)

    def _find(self, reference: ImageReference) -> Target | None:
        try:
            return self._store[_key_of(reference)]
        except KeyError:
            return None


def _key_of(reference: ImageReference) -> bytes:
    [(_, key)] = content_keys([reference], workers=1)
    if isinstance(key, OSError):
        raise UserError(f"{reference} cannot be read: {key.strerror or key}")
    return key


def open_targets(
    place: str, recipe: Recipe | None, teacher: str | None = None, grid: Grid | None = None
) -> Targets:
    """Open the namespace of a store that a run was trained on.

    Parameters
    ----------
    place
        The store.
    recipe
        Of the run; its teacher and fingerprint choose the namespace where they are given, of
        several teachers the first.
    teacher, grid
        Stand over the recipe's.

    Raises
    ------
    UserError
        No namespace fits, or more than one does.
    """
    fingerprint = None
    if recipe is not None and teacher is None:
        section = recipe.targets
        teacher, fingerprint = (
            value if value is None or isinstance(value, str) else value[0]
            for value in (section.teacher, section.fingerprint)
        )
    return Targets(TargetStore.open(place, teacher, fingerprint, grid))


def visible_of(target: Target) -> NDArray[np.bool_]:
    """Which patches show image, (N,)."""
    visible: NDArray[np.bool_] = np.asarray(target.coverage) > 0
    return visible


def teacher_map(target: Target) -> Weights | None:
    """E_a brought to a sum of 1 over the patches that show image, (N,); None of S_e alone."""
    if target.attention is None:
        return None
    return renormalized(np.asarray(target.attention, np.float64), visible_of(target))


def similarity_row(target: Target, patch: int) -> Weights:
    """Row of a patch in S_e, (N,); 1 at the patch itself."""
    return np.asarray(triangle_row(np.asarray(target.similarity), patch), np.float64)
