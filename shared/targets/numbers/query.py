"""The array `query`: R B of each patch as int8 with a scale, from which a text's map follows.

map(t) = relu(R t) is relu((R B) (B^T t)) for the part of the text t that lies in the basis B.

B images of a batch, M teacher patches, N student patches, n texts, c text width, r rank.
"""

import base64
from collections.abc import Mapping
from typing import cast

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray

from shared.imaging.grid import Grid, interpolation_matrix

NAMES = ("query", "query_scale")


def basis_of(provenance: Mapping[str, object]) -> Float32[np.ndarray, "c r"]:
    """Return the basis that a namespace's provenance keeps.

    Raises
    ------
    ValueError
        It keeps none.
    """
    kept = provenance.get("query")
    if not isinstance(kept, Mapping):
        raise ValueError("the namespace has no basis of a query")
    shape = cast("list[int]", kept["shape"])
    data = base64.b64decode(str(kept["basis"]), validate=True)
    return np.frombuffer(data, np.float16).reshape(shape).astype(np.float32)


def query_maps(
    arrays: Mapping[str, NDArray[np.generic]],
    asked: Float[np.ndarray, "n r"],
    native: tuple[int, int],
    grid: tuple[int, int],
) -> Float32[np.ndarray, "B n N"]:
    """Return the maps of a batch of stored arrays for texts in the basis, not negative.

    Parameters
    ----------
    asked
        t B of each text.
    """
    texts = np.ascontiguousarray(np.asarray(asked, dtype=np.float32).T)
    values = arrays["query"].astype(np.float32) @ texts
    values *= np.asarray(arrays["query_scale"], dtype=np.float32)[:, :, None]
    maps = np.maximum(values, 0, out=values).transpose(0, 2, 1)
    if tuple(native) == tuple(grid):
        return np.ascontiguousarray(maps)
    matrix = interpolation_matrix(Grid(*native), Grid(*grid))
    return np.asarray(maps @ matrix.T, dtype=np.float32)
