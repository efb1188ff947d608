"""From one teacher pass to stored records: Eq. 2 (interpolate), Eq. 3 (cosine), and the encoding of the identity."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shared.imaging.geometry import coverage
from shared.imaging.grid import Grid, interpolation_matrix
from shared.targets.identity import Identity
from shared.targets.layout import Record
from shared.targets.similarity import cosine_similarity_triangle

Box = tuple[float, float, float, float]  # left, top, right, bottom: the share of the square that shows image


def encode_targets(
    tokens: Float[Tensor, "B M b"],
    attention: Float[Tensor, "B M"],
    boxes: Sequence[Box],
    native: tuple[int, int],
    identity: Identity,
) -> list[Record]:
    """Turn a batch of teacher outputs into the records that a `TargetWriter` adds.

    Parameters
    ----------
    tokens
        E_v (B, M, b), last block, on any device.
    attention
        E_a (B, M), raw.
    boxes
        The content box of each image (`shared.imaging.geometry.content_box`).
    native
        The teacher's own grid (rows, columns), M patches.
    identity
        Decides grid and encoding.

    Raises
    ------
    ValueError
        If a feature or weight is not finite: a target must never be wrong in silence.
    """
    if not (torch.isfinite(tokens).all() and torch.isfinite(attention).all()):
        raise ValueError("the teacher returned values that are not finite; try --dtype fp32")
    matrix = interpolation_matrix(Grid(*native), Grid(*identity.grid)).to(tokens.device)
    interpolated = torch.einsum("nm,bmd->bnd", matrix, tokens.float())
    similarity = cosine_similarity_triangle(interpolated).half().cpu().numpy()
    weights = (attention.float() @ matrix.T).cpu().numpy()
    return [
        {
            "similarity": similarity[row],
            "attention": weights[row].astype(np.float32),
            "coverage": coverage(box, Grid(*identity.grid)),
        }
        for row, box in enumerate(boxes)
    ]
