"""From one teacher pass to stored arrays.

Eq. 2 (interpolate), Eq. 3 (cosine), and the encoding of the identity.

B images of a batch, M teacher patches, b teacher width, r rank of a query.
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
from shared.targets.numbers.on_device import quantise_on_device, quantise_query
from shared.targets.numbers.similarity import cosine_similarity_triangle
from shared.vocabulary import Precision


def encode_targets(
    tokens: Float[Tensor, "B M b"],
    attention: Float[Tensor, "B M"] | None,
    boxes: Sequence[Box],
    native: tuple[int, int],
    identity: Identity,
    query: Float[Tensor, "B M r"] | None = None,
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
    query
        R B (B, M, r), on the teacher's own grid; None where the identity has no `query`.

    Raises
    ------
    ValueError
        If a value is not finite, or E_a or R B is missing or too much: a target must never be wrong
        in silence.
    InaccurateFactors
        If `factors` cannot keep the tolerance for one of the images.
    """
    if (attention is None) != (identity.attention == "none"):
        raise ValueError(f"E_a does not fit the identity, whose attention is {identity.attention}")
    rank = None if identity.query is None else identity.query.rank
    if (None if query is None else query.shape[2]) != rank:
        raise ValueError(f"R B does not fit the identity, whose query has the rank {rank}")
    given = [one for one in (tokens, attention, query) if one is not None]
    if not all(torch.isfinite(one).all() for one in given):
        raise ValueError("the teacher returned values that are not finite; try --dtype fp32")
    asked = [dict[str, NDArray[np.generic]]() for _ in boxes] if query is None else _query(query)
    if identity.encoding == "matrix":
        made = _matrix_arrays(tokens, attention, boxes, Grid(*native), identity)
        return [{**one, **more} for one, more in zip(made, asked, strict=True)]
    if tuple(native) != identity.grid:
        raise ValueError(
            f"{identity.encoding} are stored on the teacher's grid {native}, the identity says "
            f"{identity.grid}"
        )
    weights = None if attention is None else attention.float().cpu().numpy()
    features = (
        _patches(tokens, identity)
        if identity.tolerance is None
        else [
            _factors(one.float(), native, identity.tolerance, identity.precision) for one in tokens
        ]
    )
    return [
        {
            **features[row],
            **asked[row],
            "box": np.array(box, dtype=np.float64),
            "coverage": coverage(box, Grid(*native)),
            **({} if weights is None else {"attention": weights[row]}),
        }
        for row, box in enumerate(boxes)
    ]


def _query(values: Float[Tensor, "B M r"]) -> list[dict[str, NDArray[np.generic]]]:
    stored, scale = (made.cpu().numpy() for made in quantise_query(values))
    return [{"query": stored[row], "query_scale": scale[row]} for row in range(len(stored))]


def _patches(
    tokens: Float[Tensor, "B M b"], identity: Identity
) -> list[dict[str, NDArray[np.generic]]]:
    """Return E_v of each image; int8 leaves the device, a quarter of the bytes."""
    if tokens.shape[2] != identity.width:
        raise ValueError(f"the identity says {identity.width} channels, E_v has {tokens.shape[2]}")
    values, scale = (made.cpu().numpy() for made in quantise_on_device(tokens))
    return [{"patches": values[row], "scale": scale[row]} for row in range(len(values))]


def _factors(
    tokens: Float[Tensor, "M b"], native: tuple[int, int], tolerance: float, precision: Precision
) -> dict[str, NDArray[np.generic]]:
    """Return one image's factors, from which S follows on any grid."""
    factors = factorise(tokens, native, tolerance, precision)
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
