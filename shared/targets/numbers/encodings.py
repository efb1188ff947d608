"""From one teacher pass to stored arrays.

Eq. 2 (interpolate), Eq. 3 (cosine), and the encoding of the identity.

B images of a batch, M teacher patches, b teacher width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from shared.imaging.geometry import Box, coverage
from shared.imaging.grid import Grid, interpolation_matrix
from shared.targets.identity import Identity
from shared.targets.numbers.arrays import Arrays
from shared.targets.numbers.factors import factorise
from shared.targets.numbers.patches import quantise_patches
from shared.targets.numbers.similarity import cosine_similarity_triangle


def encode_targets(
    tokens: Float[Tensor, "B M b"],
    attention: Float[Tensor, "B M"] | None,
    boxes: Sequence[Box],
    native: tuple[int, int],
    identity: Identity,
) -> list[Arrays]:
    """Turn a batch of teacher outputs into the arrays that a `TargetWriter` adds, image by image.

    Parameters
    ----------
    tokens
        E_v (B, M, b), last block, on any device.
    attention
        E_a (B, M), raw; None where the identity's `attention` is `none`.
    boxes
        The content box of each image, in fractions of the square.
    native
        The teacher's own grid (rows, columns), M patches; `factors` and `patches` need it to be the
        identity's.
    identity
        Decides grid, encoding, precision and tolerance.

    Raises
    ------
    ValueError
        If a feature or weight is not finite, or E_a is missing or too much: a target must never be
        wrong in silence.
    InaccurateFactors
        If `factors` cannot keep the tolerance for one of the images.
    """
    if (attention is None) != (identity.attention == "none"):
        raise ValueError(f"E_a does not fit the identity, whose attention is {identity.attention}")
    given = [tokens] if attention is None else [tokens, attention]
    if not all(torch.isfinite(one).all() for one in given):
        raise ValueError("the teacher returned values that are not finite; try --dtype fp32")
    if identity.encoding == "matrix":
        return _matrix_arrays(tokens, attention, boxes, Grid(*native), identity)
    if tuple(native) != identity.grid:
        raise ValueError(
            f"{identity.encoding} are stored on the teacher's grid {native}, the identity says "
            f"{identity.grid}"
        )
    weights = None if attention is None else attention.float().cpu().numpy()
    return [
        {
            **_features(tokens[row].float(), native, identity),
            "box": np.array(box, dtype=np.float64),
            "coverage": coverage(box, Grid(*native)),
            **({} if weights is None else {"attention": weights[row]}),
        }
        for row, box in enumerate(boxes)
    ]


def _features(
    tokens: Float[Tensor, "M b"], native: tuple[int, int], identity: Identity
) -> dict[str, NDArray[np.generic]]:
    """Return one image's arrays from which S follows on any grid."""
    if identity.tolerance is None:
        if tokens.shape[1] != identity.width:
            raise ValueError(
                f"the identity says {identity.width} channels, E_v has {tokens.shape[1]}"
            )
        values, scale = quantise_patches(tokens.cpu().numpy())
        return {"patches": values, "scale": scale}
    factors = factorise(tokens, native, identity.tolerance, identity.precision)
    return {
        "factors": factors.values,
        "scale": factors.scale,
        "rank": np.array(factors.values.shape[1], dtype=np.uint16),
        "error": factors.error,
    }


def _matrix_arrays(
    tokens: Tensor,
    attention: Tensor | None,
    boxes: Sequence[Box],
    native: Grid,
    identity: Identity,
) -> list[Arrays]:
    grid = Grid(*identity.grid)
    matrix = torch.from_numpy(interpolation_matrix(native, grid)).to(tokens.device)
    interpolated = tokens.float() if native == grid else matrix @ tokens.float()
    similarity = cosine_similarity_triangle(interpolated)
    stored = (similarity.half() if identity.precision == "f16" else similarity).cpu().numpy()
    weights = None if attention is None else (attention.float() @ matrix.T).cpu().numpy()
    return [
        {"similarity": stored[row], "coverage": coverage(box, grid)}
        | ({} if weights is None else {"attention": weights[row]})
        for row, box in enumerate(boxes)
    ]
