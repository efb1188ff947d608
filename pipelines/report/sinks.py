"""Attention sinks: patches that take much of the attention whatever the image shows.

N patches.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

TIMES = 10  # of the even share, on every image shown


def sinks_of(maps: Sequence[NDArray[np.float64]]) -> list[int]:
    """Return the patches with at least `TIMES` the even share on every one of the images.

    Parameters
    ----------
    maps
        One (N,) or (rows, columns) for each image, each a distribution; 0 where a patch shows
        padding alone. The even share is that over the patches above 0.
    """
    flat = [one.reshape(-1) for one in maps]
    high = [one * np.count_nonzero(one) >= TIMES for one in flat]
    return [int(patch) for patch in np.flatnonzero(np.logical_and.reduce(high))]


def sink_lines(maps: Mapping[str, Sequence[NDArray[np.float64]]]) -> list[str]:
    """Name the sinks of each who looks: the patch, its place, and its share of the attention.

    `maps`: by name, the (rows, columns) map of each image.
    """
    lines = []
    for name, own in maps.items():
        for patch in sinks_of(own):
            row, column = divmod(patch, own[0].shape[1])
            shares = [float(one[row, column]) for one in own]
            low, high = (f"{100 * end:.0f}%" for end in (min(shares), max(shares)))
            span = low if low == high else f"{low} to {high}"
            lines.append(
                f"{name}: patch {patch} (row {row + 1}, column {column + 1}) takes {span} of the "
                "attention"
            )
    return lines
