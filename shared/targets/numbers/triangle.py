"""The strict upper triangle of a symmetric matrix over N patches, row-major: how S is kept."""

from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray


def triangle_length(patches: int) -> int:
    """Count the pairs i < j among `patches` patches: N(N-1)/2."""
    return patches * (patches - 1) // 2


def patches_of_triangle(length: int) -> int:
    """Find the N whose triangle has `length` entries.

    Raises
    ------
    ValueError
        If `length` is not N(N-1)/2 for a whole N.
    """
    patches = (1 + isqrt(1 + 8 * length)) // 2
    if triangle_length(patches) != length:
        raise ValueError(f"{length} is not the length of a triangle N(N-1)/2")
    return patches


@lru_cache(maxsize=8)
def pairs_of(patches: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows i and columns j of the pairs i < j, as `numpy.triu_indices(N, 1)`, read-only."""
    rows, columns = np.triu_indices(patches, 1)
    rows.flags.writeable = columns.flags.writeable = False
    return rows, columns
