"""Gray levels: numbers of any type become 0 to 255.

Deep values (over 8 bits) are scaled between their 0.5th and 99.5th percentile, so that one hot
pixel does not make all others black; where both are one number, such as in a mask, from the
smallest to the largest value. Integers go through a look-up table of their distinct values and a
count of each, floating-point numbers are scaled a piece at a time: next to its input neither needs
more than 5 bytes a value.
"""

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.imaging.pixels import UnreadableImage

Number = TypeVar("Number", bound=np.generic)
Numbers = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
Floats = NDArray[np.float64]
Levels = NDArray[np.uint8]

_SHARES = (0.5, 99.5)  # percent
_WIDEST = 1 << 20  # distinct integers that a table is made for
_PIECE = 1 << 18  # values that are handled at a time


class Counts(NamedTuple):
    """The integers from an image's smallest to its largest value, and how often each occurs."""

    values: NDArray[np.int64]
    counts: NDArray[np.int64]


def counts_of(pixels: Numbers) -> Counts | None:
    """Count the values of integer pixels; None for other numbers, or a range beyond a table."""
    if pixels.dtype.kind not in "ui" or not pixels.size:
        return None
    low, high = int(pixels.min()), int(pixels.max())
    if high - low >= _WIDEST:
        return None
    counts = np.zeros(high - low + 1, np.int64)
    for piece in _pieces(pixels):
        counts += np.bincount(_steps(piece, low), minlength=counts.size)
    return Counts(np.arange(low, high + 1), counts)


def look_up(pixels: Numbers, low: int, table: Levels) -> Levels:
    """Return `table[pixels - low]`, without an index array as large as the image."""
    levels = np.empty_like(pixels, dtype=np.uint8)
    for piece, out in zip(_pieces(pixels), _pieces(levels), strict=True):
        np.take(table, _steps(piece, low), out=out, mode="clip")
    return levels


def stretched(values: Floats, counts: NDArray[np.int64], *, deep: bool = True) -> Floats:
    """Scale values to [0, 1]; those that do not count may lie outside.

    Parameters
    ----------
    values
        Any numbers, in any order; those not finite do not count.
    counts
        How many pixels have each.
    deep
        Between percentiles, else between the smallest and the largest value.

    Raises
    ------
    UnreadableImage
        If no pixel is finite, or all have one value: that cannot be told from a failed decoding.
    """
    there = (counts > 0) & np.isfinite(values)
    if not there.any():
        raise UnreadableImage("no pixel has a finite value")
    order = np.argsort(values[there], kind="stable")
    ordered, total = values[there][order], np.cumsum(counts[there][order])
    low, high = ordered[0], ordered[-1]
    if low == high:
        raise UnreadableImage(f"every pixel has the value {low:g}")
    if deep:
        inner = [_percentile(ordered, total, share) for share in _SHARES]
        low, high = inner if inner[0] < inner[1] else (low, high)
    scaled: Floats = (values - low) / (high - low)
    return scaled


def to_levels(shown: Floats, inverted: bool) -> Levels:
    """Return numbers in [0, 1] as 0 to 255; what is no number is black, inverted or not."""
    upright = 1 - shown if inverted else shown
    levels: Levels = np.rint(np.clip(np.nan_to_num(upright, nan=0) * 255, 0, 255)).astype(np.uint8)
    return levels


def integer_levels(pixels: Numbers, counts: Counts, inverted: bool = False) -> Levels:
    """Return deep integers as gray levels; colour channels share one range."""
    shown = stretched(counts.values.astype(np.float64), counts.counts)
    return look_up(pixels, int(counts.values[0]), to_levels(shown, inverted))


def float_levels(values: NDArray[np.float32], inverted: bool = False) -> Levels:
    """Return floating-point numbers as gray levels, 5 bytes a value beside the input."""
    there = sum(int(np.isfinite(piece).sum()) for piece in _pieces(values))
    if not there:
        raise UnreadableImage("no pixel has a finite value")
    finite = np.empty(there, np.float32)
    start = 0
    for piece in _pieces(values):
        part = piece[np.isfinite(piece)]
        finite[start : start + part.size] = part
        start += part.size
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        raise UnreadableImage(f"every pixel has the value {low:g}")
    inner = [float(end) for end in np.percentile(finite, _SHARES, overwrite_input=True)]
    del finite
    low, high = inner if inner[0] < inner[1] else (low, high)
    levels = np.empty_like(values, dtype=np.uint8)
    for piece, out in zip(_pieces(values), _pieces(levels), strict=True):
        out[:] = to_levels((piece.astype(np.float64) - low) / (high - low), inverted)
    return levels


def gray_levels(pixels: Numbers, inverted: bool = False) -> Levels:
    """Return deep pixels of any type (rows, columns) as gray levels."""
    counts = counts_of(pixels)
    if counts is not None:
        return integer_levels(pixels, counts, inverted)
    return float_levels(narrowed(pixels), inverted)


def narrowed(pixels: Numbers) -> NDArray[np.float32]:
    """Return numbers as float32, the wide types less one number among them.

    Float32 keeps 24 bits: what differs far from zero would become one value.
    """
    if pixels.dtype == np.float32:
        return pixels.astype(np.float32, copy=False)
    narrow = np.empty_like(pixels, dtype=np.float32)
    middle: float | None = None
    for piece, out in zip(_pieces(pixels), _pieces(narrow), strict=True):
        wide = piece.astype(np.float64)
        if middle is None and np.isfinite(wide).any():
            middle = float(wide[np.isfinite(wide)][0])
        out[:] = wide - (middle or 0)
    return narrow


def rgb(levels: Levels) -> Image.Image:
    """Return gray levels (rows, columns) as an RGB image."""
    return Image.fromarray(levels, "L").convert("RGB")


def _percentile(ordered: Floats, total: NDArray[np.int64], share: float) -> float:
    """Return what numpy's `percentile` gives for the values repeated by their counts."""
    position = share / 100 * (int(total[-1]) - 1)
    below = int(position)
    first, second = np.searchsorted(total, (below, min(below + 1, int(total[-1]) - 1)), "right")
    start, end = float(ordered[first]), float(ordered[second])
    return start + (end - start) * (position - below)


def _steps(piece: Numbers, low: int) -> NDArray[np.int64]:
    steps: NDArray[np.int64] = piece.astype(np.int64) - low
    return steps


def _pieces(pixels: NDArray[Number]) -> Iterator[NDArray[Number]]:
    flat = pixels.ravel(order="K")  # as it lies in memory, so without a copy
    for start in range(0, flat.size, _PIECE):
        yield flat[start : start + _PIECE]
