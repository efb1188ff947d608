"""What every reader of a format needs.

The refusal, the limits, and gray levels of any type as RGB.
"""

import numpy as np
from PIL import Image


class UnreadableImage(ValueError):
    """An image that cannot be shown faithfully; the message is the reason and names no path."""


def gray_to_rgb(pixels: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Image.Image:
    """Scale a grayscale plane (rows, columns) from its own range to 8 bits, as RGB.

    Raises UnreadableImage where no pixel is finite, or where every pixel has one value: a flat
    plane cannot be told from a failed decoding.
    """
    values = pixels.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise UnreadableImage("no pixel has a finite value")
    low, high = values[finite].min(), values[finite].max()
    if low == high:
        raise UnreadableImage(f"every pixel has the value {low:g}")
    scaled = np.where(finite, (values - low) / (high - low) * 255, 0)
    return Image.fromarray(np.rint(scaled).astype(np.uint8), "L").convert("RGB")


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise UnreadableImage where an image has no pixels or too many."""
    if width < 1 or height < 1:
        raise UnreadableImage(f"it has {width} x {height} pixels")
    if width * height > max_pixels:
        raise UnreadableImage(f"{width} x {height} pixels are more than the {max_pixels} allowed")


def frame_number(part: str, frames: int) -> int:
    """Read `frame=12` (0-based) and check that there is such a frame."""
    name, _, number = part.partition("=")
    if name != "frame" or not number.isdecimal():
        raise UnreadableImage(f"part {part!r} does not name a frame such as frame=0")
    if int(number) >= frames:
        raise UnreadableImage(f"part {part!r}: the file has {frames} frames, counted from 0")
    return int(number)
