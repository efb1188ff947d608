"""How an image becomes the square that a vision encoder sees, and which patches of it show image.

`pad` is what LLaVA's students do: paste the image, centred, on a square of the mean colour, then resize. `crop` is the
authors' teacher preprocessing: resize the short side and cut the centre. On an image that is not square, patch i of one
and patch i of the other show different places; a store therefore names its geometry.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.imaging.grid import Grid

Geometry = Literal["pad", "crop"]


class Box(NamedTuple):
    """A rectangle in fractions of the square, (0, 0, 1, 1) being all of it."""

    left: float
    top: float
    right: float
    bottom: float


def square(image: Image.Image, size: int, geometry: Geometry, fill: tuple[int, int, int]) -> Image.Image:
    """Return `image` (RGB) as a `size` x `size` square, resampled bicubically.

    Parameters
    ----------
    image
        Any width and height, mode RGB.
    size
        Side of the result in pixels.
    geometry
        `pad` or `crop`.
    fill
        Colour of the padding, the student's `int(255 * image_mean)`.
    """
    width, height = image.size
    if geometry == "crop":
        short = min(width, height)
        scaled = (size, int(size * height / short)) if width <= height else (int(size * width / short), size)
        image = image.resize(scaled, Image.Resampling.BICUBIC)
        left, top = round((image.width - size) / 2), round((image.height - size) / 2)
        return image.crop((left, top, left + size, top + size))
    side = max(width, height)
    if width != height:
        canvas = Image.new("RGB", (side, side), fill)
        canvas.paste(image, ((side - width) // 2, (side - height) // 2))
        image = canvas
    return image.resize((size, size), Image.Resampling.BICUBIC)


def content_box(width: int, height: int, geometry: Geometry) -> Box:
    """Return where in the square the image of `width` x `height` pixels lies; all of it under `crop`."""
    if geometry == "crop":
        return Box(0.0, 0.0, 1.0, 1.0)
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return Box(left / side, top / side, (left + width) / side, (top + height) / side)


def coverage(box: Box, grid: Grid) -> NDArray[np.uint8]:
    """Return 255 x the share of each patch inside `box`, (N,) uint8; 0 only where a patch shows no image at all."""
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
