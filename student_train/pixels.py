"""From an image to the student's pixels: squared, resized, normalised, exactly as the published students were trained.

LLaVA's `expand2square` (background: the processor's mean colour, centred paste) and CLIP's resize and normalisation;
the square is cut by `shared.imaging.geometry`, the same code that squares it for the teacher.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from shared.imaging.geometry import Geometry, square
from shared.imaging.images import ImageReference, open_image


class ImageReader(NamedTuple):
    """Reads image references as pixels; plain values only, so that it travels to worker processes.

    Attributes
    ----------
    size
        Side of the square in pixels (`BaseStudent.image_size`).
    mean, deviation
        Of each channel, on the scale 0 to 1.
    geometry
        `pad` keeps the whole image on a square of the mean colour; `crop` keeps its centre.
    """

    size: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    geometry: Geometry = "pad"

    def __call__(self, reference: ImageReference) -> Float[Tensor, "3 size size"]:
        """Open an image and return its pixels; `UnreadableImage` where that fails."""
        return self.pixels(open_image(reference))

    def pixels(self, image: Image.Image) -> Float[Tensor, "3 size size"]:
        """Return an open image as the vision tower wants it, float32."""
        fill = (int(self.mean[0] * 255), int(self.mean[1] * 255), int(self.mean[2] * 255))
        levels = np.asarray(square(image.convert("RGB"), self.size, self.geometry, fill), dtype=np.float32) / 255.0
        normalised = (levels - np.asarray(self.mean, np.float32)) / np.asarray(self.deviation, np.float32)
        return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))


def image_reader(image_processor: Any, image_size: int, geometry: Geometry = "pad") -> ImageReader:
    """Return the reader of a transformers image processor, whose mean and deviation it takes."""
    return ImageReader(image_size, tuple(image_processor.image_mean), tuple(image_processor.image_std), geometry)
