"""How an image becomes the square that a vision encoder sees, and which patches of it show image.

`pad` is what LLaVA's students do: paste the image, centred, on a square of the mean colour, then
resize. `crop` is the authors' teacher preprocessing: resize the short side and cut the centre. On
an image that is not square, patch i of one and patch i of the other show different places; a store
therefore names its geometry.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.imaging.grid import Grid
from shared.vocabulary import Geometry


class Box(NamedTuple):
    """A rectangle in fractions of the square, (0, 0, 1, 1) being all of it."""

    left: float
    top: float
    right: float
    bottom: float


def content_box(width: int, height: int, geometry: Geometry) -> Box:
    """Return where in the square the image of `width` x `height` pixels lies.

    All of it under `crop`.
    """
    if geometry == "crop":
        return Box(0.0, 0.0, 1.0, 1.0)
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return Box(left / side, top / side, (left + width) / side, (top + height) / side)


def coverage(box: Box, grid: Grid) -> NDArray[np.uint8]:
    """Return 255 x the share of each patch inside `box`, (N,) uint8.

    0 only where a patch shows no image at all.
    """
    rows = _overlap(box.top, box.bottom, grid.rows)
    columns = _overlap(box.left, box.right, grid.columns)
    share = 255 * np.outer(rows, columns).ravel()
    # A sliver of image rounds up to 1: zero is what the losses read as "padding only".
    return np.where(share > 0, np.maximum(np.rint(share), 1), 0).astype(np.uint8)


def _overlap(low: float, high: float, cells: int) -> NDArray[np.float64]:
    edges = np.arange(cells + 1) / cells
    inside = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * cells
    # Edges that fall on a patch border must not leave 1e-16 of image behind.
    return np.where(inside < 1e-9, 0.0, inside)
