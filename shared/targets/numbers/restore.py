"""From stored `factors` or `patches` to targets on any grid (Eq. 2, 3).

Without torch, which would be most of a reader's memory.

B images, N student patches.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray

from shared.imaging.geometry import Box, coverage
from shared.imaging.grid import Grid, interpolation_matrix
from shared.targets.numbers.triangle import places_of


def targets_on(
    arrays: Mapping[str, NDArray[np.generic]], native: tuple[int, int], grid: tuple[int, int]
) -> tuple[
    Float32[np.ndarray, "B pairs"], Float32[np.ndarray, "B N"] | None, UInt8[np.ndarray, "B N"]
]:
    """Compute (similarity, attention, coverage) on any grid from a batch of stored arrays.

    Attention is None where the arrays hold none.
    """
    count = len(arrays["scale"])
    source, target = Grid(*native), Grid(*grid)
    places = places_of(target.size)
    similarity = np.empty((count, len(places)), dtype=np.float32)
    matrix = None if source == target else interpolation_matrix(source, target)
    for row in range(count):
        tokens = _values(arrays, row).astype(np.float32) * arrays["scale"][row][:, None]
        if matrix is not None:
            tokens = matrix @ tokens
        norms = np.sqrt(np.einsum("nr,nr->n", tokens, tokens))
        tokens /= np.maximum(norms, np.float32(1e-12))[:, None]
        square = tokens @ tokens.T
        np.take(square.ravel(), places, out=similarity[row], mode="clip")
    np.clip(similarity, -1, 1, out=similarity)
    attention = arrays.get("attention")
    if attention is not None and matrix is not None:
        attention = np.asarray(attention, dtype=np.float32) @ matrix.T
    return similarity, attention, coverage_on(arrays, native, grid)


def coverage_on(
    arrays: Mapping[str, NDArray[np.generic]], native: tuple[int, int], grid: tuple[int, int]
) -> UInt8[np.ndarray, "B N"]:
    """Compute the coverage of the patches on any grid from a batch of stored arrays."""
    source, target = Grid(*native), Grid(*grid)
    if source == target:
        return np.asarray(arrays["coverage"], dtype=np.uint8)
    cover = [coverage(Box(*(float(edge) for edge in box)), target) for box in arrays["box"]]
    return np.stack(cover) if cover else np.empty((0, target.size), dtype=np.uint8)


def _values(arrays: Mapping[str, NDArray[np.generic]], row: int) -> NDArray[np.generic]:
    """Return what is stored of E_v; the rotation of `patches` leaves S as it is."""
    if "patches" in arrays:
        return np.asarray(arrays["patches"][row])
    return np.asarray(arrays["factors"][row, :, : int(arrays["rank"][row])])
