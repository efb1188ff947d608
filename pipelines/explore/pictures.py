"""Images as the page shows them, and the outlines of regions over them. None from outside the root.

The page draws the image at its place in the square that the encoders see (`image_box`), so that
patches lie where they belong.
"""

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipelines.regions.masks import Mask, pixels_of
from pipelines.regions.reading import Region
from shared.errors import UserError
from shared.imaging.geometry import content_box
from shared.imaging.images import ImageReference, open_image
from shared.imaging.pixels import UnreadableImage
from shared.vocabulary import Geometry

LARGEST = 1600  # pixels of the longer side; larger images are shown smaller
COLOURS = ("#ffffff", "#4dd2ff", "#ffd24d", "#7ee787", "#ff9bd2", "#ffa657")  # of regions' labels
_CASING = "#000000"


class Outside(UserError):
    """A file that lies outside the folders which the page may show."""


def inside(reference: ImageReference, root: Path) -> ImageReference:
    """Return the reference if its file lies below `root`, links followed.

    Raises
    ------
    Outside
        It does not.
    """
    if not reference.path.resolve().is_relative_to(root.resolve()):
        raise Outside(
            f"{reference} leads out of the image root {root}; name the folder that holds the files "
            "with --image-root"
        )
    return reference


@lru_cache(maxsize=4)
def opened(reference: ImageReference) -> Image.Image:
    """Open an image; the last few stay open.

    Raises
    ------
    UserError
        It is not there, or no image.
    """
    try:
        return open_image(reference)
    except (UnreadableImage, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{reference} cannot be shown: {reason}") from None


def picture(reference: ImageReference) -> bytes:
    """Return the image as PNG, at its own size up to `LARGEST`."""
    image = opened(reference)
    if max(image.size) > LARGEST:
        image = image.copy()
        image.thumbnail((LARGEST, LARGEST))
    return _png(image)


def image_box(width: int, height: int, geometry: Geometry) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of the whole image in fractions of the encoder's square.

    Under `crop` a side of the image reaches beyond the square: its fractions are below 0 and
    above 1.
    """
    if geometry == "pad":
        inner = content_box(width, height, geometry)
        return inner.left, inner.top, inner.right, inner.bottom
    side = min(width, height)
    left, top = (side - width) / 2 / side, (side - height) / 2 / side
    return left, top, left + width / side, top + height / side


def outlines(regions: Sequence[Region], width: int, height: int) -> bytes:
    """Draw the edges of an image's regions on nothing, as a PNG of the picture's size.

    Parameters
    ----------
    regions
        Boxes in pixels of the image, or masks of its size.
    width, height
        Of the image in pixels.
    """
    scale = min(1.0, LARGEST / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shown = Image.new("RGBA", size, (0, 0, 0, 0))
    pen, line = ImageDraw.Draw(shown), max(1, round(max(size) / 250))
    colours = label_colours(regions)
    for label, place in regions:
        if isinstance(place, Mask):
            _trace(shown, place, (width, height), colours[label], line)
            continue
        x, y, across, down = (edge * scale for edge in place)
        for grown, colour in ((line, _CASING), (0, colours[label])):
            corners = (x - grown, y - grown, x + across - 1 + grown, y + down - 1 + grown)
            pen.rectangle(corners, outline=colour, width=line)
    return _png(shown)


def label_colours(regions: Sequence[Region]) -> dict[str, str]:
    """Return the colour of each label, in the order in which they first come."""
    labels = dict.fromkeys(region.label for region in regions)
    return {label: COLOURS[place % len(COLOURS)] for place, label in enumerate(labels)}


def _trace(shown: Image.Image, mask: Mask, size: tuple[int, int], colour: str, line: int) -> None:
    from scipy.ndimage import binary_dilation

    whole = Image.fromarray(pixels_of(mask, *size)).resize(shown.size, Image.Resampling.NEAREST)
    within = np.asarray(whole)
    near = binary_dilation(within, iterations=line)
    for edge, one in (
        (binary_dilation(near, iterations=line) & ~near, _CASING),
        (near & ~within, colour),
    ):
        shown.paste(one, (0, 0), Image.fromarray(edge))


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=1)
    return stream.getvalue()
