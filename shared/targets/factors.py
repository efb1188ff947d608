"""The `factors` encoding: patch features on their first singular vectors, from which S for any grid follows.

With E (M, b) the teacher's features and V_r its first r right singular vectors, F = E V_r keeps the inner products:
F F^T -> E E^T as r grows, exactly at full rank. Interpolation acts on patches, so A F stands for A E on every grid,
and S is the cosine of its rows (Eq. 2, 3). Each patch has its own scale, because a few outlier patches with large norms
would spoil a common one.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from numpy.typing import NDArray
from torch import Tensor

from shared.console import UserError
from shared.imaging.geometry import Box, coverage
from shared.imaging.grid import Grid, interpolation_matrix

REFERENCE_GRID = Grid(24, 24)  # the published students'; the error is stated there and at the native grid


class Factors(NamedTuple):
    """One image's factors: `values` (M, r) int8 or float16, `scale` (M,), and the error (native, 24x24) of S."""

    values: NDArray[Any]
    scale: NDArray[np.float32]
    error: NDArray[np.float32]


def factorise(tokens: Float[Tensor, "M b"], native: tuple[int, int], tolerance: float, precision: str) -> Factors:
    """Find the smallest rank whose largest error of a similarity is within `tolerance`, stored values included.

    Parameters
    ----------
    tokens
        E_v (M, b), not normalised, not centred.
    native
        The teacher's grid (rows, columns).
    tolerance
        Largest max abs(S - S_hat), at the native grid and at 24x24.
    precision
        `u8` stores int8, `f16` float16.

    Raises
    ------
    UserError
        If even the full rank is not that close, because the stored type is too coarse.
    """
    exact = tokens.double()
    projected = _project(exact)
    reference = interpolation_matrix(Grid(*native), REFERENCE_GRID).to(tokens.device)
    wanted = (_cosine(exact), _cosine(reference.double() @ exact))

    def attempt(rank: int) -> tuple[Tensor, Tensor, list[float]]:
        values, scale = _quantise(projected[:, :rank], precision)
        restored = values.float() * scale[:, None]
        have = (_cosine(restored), _cosine(reference @ restored))
        return values, scale, [float((s - s_hat).abs().max()) for s, s_hat in zip(wanted, have, strict=True)]

    low, high = 1, projected.shape[1]
    best = attempt(high)
    if max(best[2]) > tolerance:
        raise UserError(
            f"factors at full rank are off by {max(best[2]):.4f} in precision {precision}, more than --tolerance "
            f"{tolerance}: use --precision f16 or a larger --tolerance"
        )
    while low < high:
        middle = (low + high) // 2
        candidate = attempt(middle)
        if max(candidate[2]) <= tolerance:
            best, high = candidate, middle
        else:
            low = middle + 1
    values, scale, error = best
    return Factors(values.cpu().numpy(), scale.cpu().numpy(), np.array(error, dtype=np.float32))


def _project(tokens: Tensor) -> Tensor:
    """E V: the features in the order of their right singular vectors, from the smaller of the two Gram matrices."""
    patches, width = tokens.shape
    values, vectors = torch.linalg.eigh(tokens.T @ tokens if width <= patches else tokens @ tokens.T)
    right = tokens @ vectors if width <= patches else vectors * values.clamp(min=0).sqrt()
    ordered: Tensor = right.flip(1)
    return ordered


def _cosine(tokens: Tensor) -> Tensor:
    unit: Tensor = torch.nn.functional.normalize(tokens, dim=-1)
    return unit @ unit.T


def _quantise(projected: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Each row against its own largest value."""
    largest = projected.abs().amax(1)
    safe = largest.clamp(min=torch.finfo(torch.float32).tiny)
    if precision == "u8":
        values = (projected / safe[:, None] * 127).round().to(torch.int8)
        return values, (largest / 127).float()
    return (projected / safe[:, None]).half(), largest.float()


def targets_of_factors(
    arrays: Mapping[str, NDArray[Any]], native: tuple[int, int], grid: tuple[int, int]
) -> tuple[Float32[np.ndarray, "B pairs"], Float32[np.ndarray, "B N"], UInt8[np.ndarray, "B N"]]:
    """Compute (similarity, attention, coverage) on any grid from the stored arrays of a batch (B first)."""
    count = len(arrays["scale"])
    source, target = Grid(*native), Grid(*grid)
    pairs = _pairs(target.size)
    similarity = np.empty((count, len(pairs)), dtype=np.float32)
    matrix = None if source == target else interpolation_matrix(source, target).numpy()
    for row in range(count):
        rank = int(arrays["rank"][row])
        tokens = arrays["factors"][row, :, :rank].astype(np.float32) * arrays["scale"][row][:, None]
        if matrix is not None:
            tokens = matrix @ tokens
        norms = np.sqrt(np.einsum("nr,nr->n", tokens, tokens))
        tokens /= np.maximum(norms, np.float32(1e-12))[:, None]
        square = tokens @ tokens.T
        np.take(square.ravel(), pairs, out=similarity[row], mode="clip")
    np.clip(similarity, -1, 1, out=similarity)
    if matrix is None:
        return similarity, arrays["attention"], arrays["coverage"]
    cover = [coverage(Box(*(float(edge) for edge in box)), target) for box in arrays["box"]]
    stacked = np.stack(cover) if cover else np.empty((0, target.size), dtype=np.uint8)
    return similarity, arrays["attention"] @ matrix.T, stacked


@lru_cache(maxsize=4)
def _pairs(patches: int) -> NDArray[np.intp]:
    """Places of the strict upper triangle in the flattened square."""
    rows, columns = np.triu_indices(patches, 1)
    return rows * patches + columns
