"""From an image to the pixels of a vision encoder: squared, resized, normalised.

The same for teacher and student.

What teacher patch i and student patch i show is one place of the image only because both come
through here: LLaVA's `expand2square` (centred on the encoder's mean colour), CLIP's bicubic resize
and its normalisation. Where the padded square would be larger than `LARGEST` (a strip of 2,000 x
20,000 pixels), the image is resized first and padded then.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from shared.imaging.images import ImageReference, open_image
from shared.vocabulary import Geometry, Interpolation

Colours = tuple[float, float, float]  # of the three channels, on the scale 0 to 1
Fill = tuple[int, int, int]
LARGEST = 200_000_000  # pixels of a padded square: twice the most that an image may have
_BAND = 256  # rows
RESAMPLING: dict[Interpolation, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


class ImageReader(NamedTuple):
    """Reads images as one encoder's pixels.

    Plain values only, so that it travels to worker processes.

    Attributes
    ----------
    size
        Side of the encoder's square in pixels.
    mean, deviation
        Of each channel, on the scale 0 to 1.
    geometry
        `pad` keeps the whole image on a square of the mean colour; `crop` keeps its centre.
    interpolation
        Of the resize: the one that the encoder was trained with.
    padding
        Levels 0 to 255 of the square around the image; None is the mean colour.
    """

    size: int
    mean: Colours
    deviation: Colours
    geometry: Geometry = "pad"
    interpolation: Interpolation = "bicubic"
    padding: Fill | None = None

    def __call__(self, reference: ImageReference) -> Float[Tensor, "3 size size"]:
        """Open an image and return its pixels; `UnreadableImage` where that fails."""
        return self.pixels(open_image(reference))

    def pixels(self, image: Image.Image) -> Float[Tensor, "3 size size"]:
        """Return an open image as the encoder wants it, float32."""
        levels = np.asarray(self.square(image, self.size), dtype=np.float32) / 255
        normalised = (levels - np.array(self.mean, np.float32)) / np.array(
            self.deviation, np.float32
        )
        return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))

    def square(self, image: Image.Image, size: int) -> Image.Image:
        """Return what the encoder sees of an open image, as a `size` x `size` picture."""
        fill = mean_colour(self.mean) if self.padding is None else self.padding
        colours = image if image.mode == "RGB" else image.convert("RGB")
        return square(colours, size, self.geometry, fill, self.interpolation)


def mean_colour(mean: Colours) -> Fill:
    """Return the levels that LLaVA's `expand2square` pads with: `int(255 * mean)`."""
    red, green, blue = (int(255 * level) for level in mean)
    return red, green, blue


@runtime_checkable
class ImageProcessor(Protocol):
    """What is read of a transformers image processor."""

    image_mean: list[float]
    image_std: list[float]


def image_reader(
    image_processor: ImageProcessor,
    image_size: int,
    geometry: Geometry = "pad",
    padding: Fill | None = None,
) -> ImageReader:
    """Return the reader of a transformers image processor.

    It takes that one's mean and deviation, and its resampling where that is bilinear.
    """
    (a, b, c), (d, e, f) = image_processor.image_mean, image_processor.image_std
    bilinear = getattr(image_processor, "resample", None) == Image.Resampling.BILINEAR
    resize: Interpolation = "bilinear" if bilinear else "bicubic"
    return ImageReader(image_size, (a, b, c), (d, e, f), geometry, resize, padding)


def square(
    image: Image.Image,
    size: int,
    geometry: Geometry,
    fill: Fill,
    interpolation: Interpolation = "bicubic",
) -> Image.Image:
    """Return `image` (RGB) as a `size` x `size` square, resampled.

    Parameters
    ----------
    image
        Any width and height, mode RGB.
    size
        Side of the result in pixels.
    geometry
        `pad` or `crop`.
    fill
        Colour of the padding.
    interpolation
        `bicubic` or `bilinear`.
    """
    resampling = RESAMPLING[interpolation]
    width, height = image.size
    if geometry == "crop":
        short = min(width, height)
        scaled = (
            (size, int(size * height / short))
            if width <= height
            else (int(size * width / short), size)
        )
        image = image.resize(scaled, resampling)
        left, top = round((image.width - size) / 2), round((image.height - size) / 2)
        return image.crop((left, top, left + size, top + size))
    if width == height:
        return image.resize((size, size), resampling)
    if max(width, height) ** 2 > LARGEST:
        return _content_first(image, size, fill, resampling)
    return _padded_first(image, size, fill, resampling)


def _padded_first(
    image: Image.Image, size: int, fill: Fill, resampling: Image.Resampling
) -> Image.Image:
    """Pad, then resize, as the students do; in bands, so that the padded square is never held.

    Pillow resizes rows first, each by itself, then columns: the pixels are the very same.
    """
    width, height = image.size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    narrow = Image.new("RGB", (size, side))
    for start in range(0, side, _BAND):
        band = Image.new("RGB", (side, min(_BAND, side - start)), fill)
        band.paste(image, (left, top - start))
        narrow.paste(band.resize((size, band.height), resampling), (0, start))
    return narrow.resize((size, size), resampling)


def _content_first(
    image: Image.Image, size: int, fill: Fill, resampling: Image.Resampling
) -> Image.Image:
    """Resize, then pad: the edge of the image falls on whole pixels, and nothing large is made."""
    side = max(image.size)
    width, height = (max(1, round(length * size / side)) for length in image.size)
    canvas = Image.new("RGB", (size, size), fill)
    scaled = image.resize((width, height), resampling)
    canvas.paste(scaled, ((size - width) // 2, (size - height) // 2))
    return canvas
