"""The strict upper triangle of a symmetric matrix over N patches, row-major: how S is kept.

The one home of what is known about its order, for numpy; on torch's devices it is
`shared.targets.numbers.similarity`.
"""

from functools import lru_cache
from math import isqrt
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)


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


def places_of(patches: int) -> NDArray[np.intp]:
    """Return the places of the pairs i < j in the flattened (N, N) matrix."""
    rows, columns = pairs_of(patches)
    return rows * patches + columns


def triangle_row(triangle: NDArray[Number], row: int) -> NDArray[Number]:
    """Return row `row` (N,) of the symmetric matrix; 1 on the diagonal."""
    patches = patches_of_triangle(len(triangle))
    others = np.delete(np.arange(patches), row)
    low, high = np.minimum(others, row), np.maximum(others, row)
    # The rows before `low` hold N-1, N-2, ... pairs.
    places = low * (2 * patches - low - 1) // 2 + high - low - 1
    values = np.ones(patches, dtype=triangle.dtype)
    values[others] = triangle[places]
    return values


def square_of(triangle: NDArray[Number]) -> NDArray[Number]:
    """Return the symmetric matrix (N, N); 1 on the diagonal."""
    patches = patches_of_triangle(len(triangle))
    rows, columns = pairs_of(patches)
    square = np.ones((patches, patches), dtype=triangle.dtype)
    square[rows, columns] = square[columns, rows] = triangle
    return square
