"""Maps for questions: what L_att teaches instead of E_a where the question names a place.

A store's namespace of the encoding `maps` holds one for an image and a text, under a key of both.
They come from a fitted query, from regions, or from anywhere else: `cache query maps`.

N patches of the grid.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from shared.imaging.grid import Grid, interpolation_matrix
from shared.targets.store import TargetStore


def normalised(text: str) -> str:
    """Return a text as it is compared and embedded: lower case, single blanks."""
    return " ".join(text.lower().split())


def map_key(image: bytes, text: str) -> bytes:
    """Name the map of an image for a text: sha256 of the image's key and the text's own sha256."""
    return hashlib.sha256(image + hashlib.sha256(normalised(text).encode()).digest()).digest()


def maps_of(
    store: TargetStore, image: bytes, texts: Sequence[str]
) -> list[Float[np.ndarray, " N"] | None]:
    """Return the map of each text on the grid of `store`; None where it has none.

    Raises
    ------
    DamagedSegment
        The bytes are not those that were written.
    """
    keys = [map_key(image, text) for text in texts]
    held = [key for key in keys if key in store]
    if not held:
        return [None for _ in texts]
    values = np.asarray(store.arrays(held)["attention"], dtype=np.float32)
    own, wanted = Grid(*store.identity.grid), Grid(*store.grid)
    if own != wanted:
        values = values @ interpolation_matrix(own, wanted).T
    found = dict(zip(held, values, strict=True))
    return [found.get(key) for key in keys]
