"""From an image to the student's pixels: squared, resized, normalised, exactly as the published students were trained.

LLaVA's `expand2square` (background: the processor's mean colour, centred paste) and CLIP's resize and normalisation;
the square is cut by `shared.imaging.geometry`, the same code that squares it for the teacher.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from shared.imaging.geometry import Geometry, square


def to_pixels(
    image: Image.Image, image_processor: Any, image_size: int, geometry: Geometry = "pad"
) -> Float[Tensor, "3 size size"]:
    """Return one RGB image as the vision tower wants it, float32.

    Parameters
    ----------
    image_processor
        A transformers image processor; its `image_mean` and `image_std` are used, and nothing else of it.
    image_size
        Side of the square in pixels (`BaseStudent.image_size`).
    geometry
        `pad` keeps the whole image on a square of the mean colour; `crop` keeps its centre.
    """
    mean, deviation = np.asarray(image_processor.image_mean), np.asarray(image_processor.image_std)
    fill = tuple(int(channel * 255) for channel in mean)
    pixels = np.asarray(square(image.convert("RGB"), image_size, geometry, fill), dtype=np.float32) / 255.0
    normalised = (pixels - mean.astype(np.float32)) / deviation.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))
