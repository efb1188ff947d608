"""A region on the grid of patches: which share of each patch of the square it covers.

N patches of a grid, row-major; the square is the encoder's (`shared.imaging.geometry`).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.regions.masks import Mask, pixels_of
from pipelines.regions.reading import Box
from shared.errors import UserError
from shared.imaging.geometry import Box as Rectangle
from shared.imaging.geometry import content_box, coverage
from shared.imaging.grid import Grid
from shared.vocabulary import Geometry

Shares = NDArray[np.float64]


def patch_shares(
    places: Sequence[Box | Mask], width: int, height: int, grid: Grid, geometry: Geometry
) -> Shares:
    """Share of each patch that the places cover, (N,), each within 1/255.

    Parameters
    ----------
    places
        Boxes in pixels of the image, or masks; where they overlap, the sum is cut off at 1.
    width, height
        Of the image in pixels.
    grid, geometry
        Of the encoder that sees it.
    """
    total = np.zeros(grid.rows * grid.columns)
    for place in places:
        if isinstance(place, Mask):
            total += weights_on(pixels_of(place, width, height), grid, geometry)
        else:
            total += coverage(rectangle_of(place, width, height, geometry), grid) / 255
    return np.minimum(total, 1.0)


def inside(
    places: Sequence[Box | Mask], width: int, height: int, grid: Grid, geometry: Geometry
) -> NDArray[np.bool_]:
    """Whether the centre of each patch lies in one of the places, (N,)."""
    columns = (np.arange(grid.columns) + 0.5) / grid.columns
    rows = (np.arange(grid.rows) + 0.5) / grid.rows
    found = np.zeros((grid.rows, grid.columns), dtype=bool)
    for place in places:
        if isinstance(place, Mask):
            found |= _mask_at(pixels_of(place, width, height), rows, columns, geometry)
            continue
        square = rectangle_of(place, width, height, geometry)
        across = (columns >= square.left) & (columns < square.right)
        down = (rows >= square.top) & (rows < square.bottom)
        found |= np.outer(down, across)
    return found.ravel()


def rectangle_of(box: Box, width: int, height: int, geometry: Geometry) -> Rectangle:
    """Return where a box lies in the square, in fractions of its side.

    Raises
    ------
    UserError
        Most of it lies beside the image: it is in other units, or of another image.
    """
    x, y, across, down = box
    inside_image = max(0.0, min(x + across, width) - x) * max(0.0, min(y + down, height) - y)
    if inside_image < across * down / 2:
        raise UserError(
            f"the box [{x:g}, {y:g}, {across:g}, {down:g}] of the regions lies beside its image, "
            f"which is {width} x {height}: boxes are [x, y, width, height] in pixels of the file"
        )
    side, left, top = _square(width, height, geometry)
    edges = (left + x, top + y, left + x + across, top + y + down)
    return Rectangle(*(float(np.clip(edge / side, 0.0, 1.0)) for edge in edges))


def mirrored(place: Box | Mask, width: int) -> Box | Mask:
    """Return the place at the other side of the image."""
    if isinstance(place, Mask):
        return place._replace(flipped=not place.flipped)
    x, y, across, down = place
    return width - x - across, y, across, down


def _square(width: int, height: int, geometry: Geometry) -> tuple[int, float, float]:
    """Return the square's side in pixels of the image, and the image's left and top in it."""
    if geometry == "crop":
        side = min(width, height)
        return side, (side - width) / 2, (side - height) / 2
    side = max(width, height)
    image = content_box(width, height, geometry)
    return side, image.left * side, image.top * side


def weights_on(
    pixels: NDArray[np.bool_] | NDArray[np.float64], grid: Grid, geometry: Geometry
) -> Shares:
    """Mean over each patch of what an image's pixels (height, width) hold, 0 beside it, (N,)."""
    height, width = pixels.shape
    side, left, top = _square(width, height, geometry)
    rows = _overlaps(top, height, side, grid.rows)
    columns = _overlaps(left, width, side, grid.columns)
    shares: Shares = (rows @ pixels.astype(np.float64) @ columns.T).ravel()
    return shares


def _overlaps(begin: float, count: int, side: int, cells: int) -> NDArray[np.float64]:
    """Share of each cell of an axis that each pixel covers, (cells, count)."""
    low = (begin + np.arange(count)) / side * cells
    high = (begin + 1 + np.arange(count)) / side * cells
    cell = np.arange(cells)[:, None]
    shared: NDArray[np.float64] = np.minimum(high, cell + 1) - np.maximum(low, cell)
    return np.maximum(shared, 0.0)


def _mask_at(
    pixels: NDArray[np.bool_],
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
    geometry: Geometry,
) -> NDArray[np.bool_]:
    """Look the mask up at points in fractions of the square's side; False beside the image."""
    height, width = pixels.shape
    side, left, top = _square(width, height, geometry)
    down = np.floor(rows * side - top).astype(int)
    across = np.floor(columns * side - left).astype(int)
    shown = np.outer((down >= 0) & (down < height), (across >= 0) & (across < width))
    found: NDArray[np.bool_] = pixels[np.ix_(down.clip(0, height - 1), across.clip(0, width - 1))]
    return shown & found
