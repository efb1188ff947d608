"""The `patches` encoding: E_v itself, every channel, as int8 with a scale for each patch.

From it follow S on any grid and any linear read-out of E_v that is fitted later, without the
images. Channels are rotated first (`rotation`), which leaves S as it is.

B images of a batch, M teacher patches, N student patches, b teacher width.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float32, Int8
from numpy.typing import NDArray

from shared.imaging.grid import Grid, interpolation_matrix
from shared.targets.numbers.rotation import rotate, rotate_back

_STEPS = 127


def quantise_patches(
    tokens: Float[np.ndarray, "M b"],
) -> tuple[Int8[np.ndarray, "M b"], Float32[np.ndarray, " M"]]:
    """Return the values and the scale of one image: values x scale is the rotated E_v."""
    turned = rotate(np.asarray(tokens, dtype=np.float32))
    largest = np.abs(turned).max(axis=1)
    safe = np.maximum(largest, np.finfo(np.float32).tiny)
    values = np.rint(turned / safe[:, None] * _STEPS).astype(np.int8)
    return values, (largest / _STEPS).astype(np.float32)


def patches_of(
    arrays: Mapping[str, NDArray[np.generic]], native: tuple[int, int], grid: tuple[int, int]
) -> Float32[np.ndarray, "B N b"]:
    """Restore E_v of a batch of stored arrays, interpolated to `grid` (Eq. 2)."""
    scale = np.asarray(arrays["scale"], dtype=np.float32)
    tokens = rotate_back(arrays["patches"].astype(np.float32) * scale[:, :, None])
    if tuple(native) == tuple(grid):
        return tokens
    matrix = interpolation_matrix(Grid(*native), Grid(*grid))
    return np.asarray(matrix @ tokens, dtype=np.float32)
