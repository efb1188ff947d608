"""Patch grids, and the linear operator between two of them (Eq. 2).

Interpolation is linear in the patches, so one matrix A (N, M) serves features and attention alike:
`A @ tokens` for every image of a store. Growing is bilinear with `align_corners=False`; shrinking
averages areas, because bilinear sampling would drop most of the source patches.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.errors import UserError


class Grid(NamedTuple):
    """Rows and columns of patches; patch i is row `i // columns`, column `i % columns`."""

    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Number of patches N."""
        return self.rows * self.columns

    @classmethod
    def parse(cls, text: str) -> "Grid":
        """Read `24x24` (rows x columns); raises `UserError` for anything else."""
        rows, separator, columns = text.lower().partition("x")
        if (
            not separator
            or not rows.isdecimal()
            or not columns.isdecimal()
            or 0 in (int(rows), int(columns))
        ):
            raise UserError(f"a grid is written as ROWSxCOLUMNS such as 24x24, not {text!r}")
        return cls(int(rows), int(columns))

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


@lru_cache(maxsize=16)
def interpolation_matrix(source: Grid, target: Grid) -> NDArray[np.float32]:
    """Return A (N, M) float32 with rows summing to 1: `target patches = A @ source patches`.

    Rows and columns are handled apart, each bilinear where it grows and area-averaged where it
    shrinks. The array is shared between callers and must not be written to.
    """
    rows, columns = _axis(source.rows, target.rows), _axis(source.columns, target.columns)
    matrix: NDArray[np.float32] = np.kron(rows, columns).astype(np.float32)
    return matrix


def _axis(source: int, target: int) -> NDArray[np.float64]:
    """Return the (target, source) operator along one axis."""
    return _area(source, target) if target < source else _bilinear(source, target)


def _bilinear(source: int, target: int) -> NDArray[np.float64]:
    centres = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    left = np.floor(centres).astype(int)
    right = np.minimum(left + 1, source - 1)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), left), 1 - (centres - left))
    np.add.at(matrix, (np.arange(target), right), centres - left)
    return matrix


def _area(source: int, target: int) -> NDArray[np.float64]:
    """Return the exact share of every source cell in every target cell.

    Also where they do not divide.
    """
    edges = np.arange(target + 1) * source / target
    low, high = edges[:-1, None], edges[1:, None]
    cell = np.arange(source)[None, :]
    overlap = np.clip(np.minimum(high, cell + 1) - np.maximum(low, cell), 0, None)
    matrix: NDArray[np.float64] = overlap / overlap.sum(1, keepdims=True)
    return matrix
