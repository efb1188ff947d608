"""A region on the grid of patches: which share of each patch of the square it covers.

N patches of a grid, row-major; the square is the encoder's (`shared.imaging.geometry`).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.regions.reading import Box
from shared.imaging.geometry import Box as Place
from shared.imaging.geometry import coverage
from shared.imaging.grid import Grid
from shared.vocabulary import Geometry

Shares = NDArray[np.float64]


def patch_shares(
    boxes: Sequence[Box], width: int, height: int, grid: Grid, geometry: Geometry = "pad"
) -> Shares:
    """Share of each patch that the boxes cover, (N,), each within 1/255.

    Parameters
    ----------
    boxes
        In pixels of the image; where they overlap, the sum is cut off at 1.
    width, height
        Of the image in pixels.
    grid, geometry
        Of the encoder that sees it.
    """
    total = np.zeros(grid.rows * grid.columns)
    for box in boxes:
        total += coverage(place_of(box, width, height, geometry), grid) / 255
    return np.minimum(total, 1.0)


def inside(
    boxes: Sequence[Box], width: int, height: int, grid: Grid, geometry: Geometry = "pad"
) -> NDArray[np.bool_]:
    """Whether the centre of each patch lies in a box, (N,)."""
    columns = (np.arange(grid.columns) + 0.5) / grid.columns
    rows = (np.arange(grid.rows) + 0.5) / grid.rows
    found = np.zeros((grid.rows, grid.columns), dtype=bool)
    for box in boxes:
        place = place_of(box, width, height, geometry)
        across = (columns >= place.left) & (columns < place.right)
        down = (rows >= place.top) & (rows < place.bottom)
        found |= np.outer(down, across)
    return found.ravel()


def place_of(box: Box, width: int, height: int, geometry: Geometry) -> Place:
    """Return where a box lies in the square, in fractions of its side."""
    x, y, across, down = box
    side = max(width, height) if geometry == "pad" else min(width, height)
    left, top = (side - width) / 2, (side - height) / 2
    edges = (left + x, top + y, left + x + across, top + y + down)
    return Place(*(float(np.clip(edge / side, 0.0, 1.0)) for edge in edges))


def mirrored(box: Box, width: int) -> Box:
    """Return the box at the other side of the image."""
    x, y, across, down = box
    return width - x - across, y, across, down
