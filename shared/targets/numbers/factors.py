"""The `factors` encoding.

Patch features on their first singular vectors, from which S for any grid follows.

With E (M, b) the teacher's features and V_r its first r right singular vectors, F = E V_r keeps the
inner products: F F^T -> E E^T as r grows, exactly at full rank. Interpolation acts on patches, so A
F stands for A E on every grid, and S is the cosine of its rows (Eq. 2, 3). Each patch has its own
scale, because a few outlier patches with large norms would spoil a common one.

M teacher patches, b teacher width, r singular vectors kept.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from shared.imaging.grid import Grid, interpolation_matrix

REFERENCE_GRID = Grid(
    24, 24
)  # the published students'; the error is stated there and at the native grid


class InaccurateFactors(ValueError):
    """An image whose similarities no rank keeps within the tolerance.

    The message is the reason and names no path.
    """


class Factors(NamedTuple):
    """One image's factors.

    `values` (M, r) int8 or float16, `scale` (M,), and the error (native, 24x24) of S.
    """

    values: NDArray[np.int8] | NDArray[np.float16]
    scale: NDArray[np.float32]
    error: NDArray[np.float32]


def factorise(
    tokens: Float[Tensor, "M b"], native: tuple[int, int], tolerance: float, precision: str
) -> Factors:
    """Find the smallest rank whose largest error of a similarity is within `tolerance`.

    The error is that of the values as they are stored.

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
    InaccurateFactors
        If even the full rank is not that close, because the stored type is too coarse.
    """
    exact = tokens.double()
    projected = _project(exact)
    reference = torch.from_numpy(interpolation_matrix(Grid(*native), REFERENCE_GRID)).to(
        tokens.device
    )
    wanted = (_cosine(exact), _cosine(reference.double() @ exact))

    def attempt(rank: int) -> tuple[Tensor, Tensor, list[float]]:
        values, scale = _quantise(projected[:, :rank], precision)
        restored = values.float() * scale[:, None]
        have = (_cosine(restored), _cosine(reference @ restored))
        return (
            values,
            scale,
            [float((s - s_hat).abs().max()) for s, s_hat in zip(wanted, have, strict=True)],
        )

    low, high = 1, projected.shape[1]
    best = attempt(high)
    if max(best[2]) > tolerance:
        finer = "--precision f16, " if precision == "u8" else ""
        raise InaccurateFactors(
            f"factors at full rank are off by {max(best[2]):.3g} in precision {precision}, more "
            "than the tolerance "
            f"{tolerance:g}: {finer}a larger --tolerance or --encoding matrix holds this image"
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
    """E V.

    The features in the order of their right singular vectors, from the smaller of the two Gram
    matrices.
    """
    patches, width = tokens.shape
    values, vectors = torch.linalg.eigh(
        tokens.T @ tokens if width <= patches else tokens @ tokens.T
    )
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
