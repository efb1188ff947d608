"""Cosine similarity between patches (Eq. 3), kept as the strict upper triangle.

B images of a batch, N patches, b teacher width; pairs = N (N - 1) / 2.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from shared.targets.numbers.triangle import patches_of_triangle


def pairs_on(patches: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what `triangle.pairs_of` does, as tensors on a device."""
    rows, columns = torch.triu_indices(patches, patches, 1, device=device)
    return rows, columns


def cosine_similarity_triangle(tokens: Float[Tensor, "B N b"]) -> Float[Tensor, "B pairs"]:
    """Cosine similarity of every pair of patches i < j (Eq. 3), in the order of `pairs_of`.

    Parameters
    ----------
    tokens
        Patch features (B, N, b), already on the grid that is wanted: Eq. 2 comes first. Lower
        precisions are computed in float32.

    Returns
    -------
    Tensor
        (B, N(N-1)/2) in [-1, 1], float32 or float64. A patch of zero norm is unlike every other:
        similarity 0.
    """
    tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    square = unit @ unit.transpose(1, 2)
    rows, columns = pairs_on(tokens.shape[1], tokens.device)
    return square[:, rows, columns].clamp(-1, 1)


def square_from_triangle(triangle: Float[Tensor, "B pairs"]) -> Float[Tensor, "B N N"]:
    """Rebuild the symmetric matrix with its unit diagonal, for figures.

    The losses never need it.
    """
    patches = patches_of_triangle(triangle.shape[1])
    rows, columns = pairs_on(patches, triangle.device)
    square = torch.eye(patches, dtype=triangle.dtype, device=triangle.device).repeat(
        triangle.shape[0], 1, 1
    )
    square[:, rows, columns] = triangle
    square[:, columns, rows] = triangle
    return square
