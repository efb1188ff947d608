"""A teacher's patch features of chosen images: a store keeps similarities, not features.

N student patches, b teacher width.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from shared.console import track
from shared.errors import UserError
from shared.imaging.grid import Grid, interpolation_matrix
from shared.imaging.images import ImageReference
from shared.targets import Identity

BATCH = 8  # images of one pass


def teacher_features(
    identity: Identity,
    references: Sequence[ImageReference],
    grid: Grid,
    *,
    weights: str | None = None,
    device: str = "auto",
) -> list[Float[np.ndarray, "N b"]]:
    """Encode images again and return E_v of each, interpolated to `grid` (Eq. 2).

    Parameters
    ----------
    identity
        Of the store whose teacher it is; checked.
    weights
        Of a teacher that brings none.
    device
        `auto`, `cpu` or a device of torch.

    Raises
    ------
    UserError
        The weights are missing or not those of the store, or an image cannot be read.
    """
    import torch

    from shared.imaging.pixels import UnreadableImage
    from shared.processes import choose_device
    from teacher_cache.encoder import encode
    from teacher_cache.settings import DTYPES, load_of
    from teacher_cache.stream import prepare

    place = choose_device(device)
    teacher = load_of(identity, weights, place, "--weights" if weights else identity.teacher)
    matrix = torch.from_numpy(interpolation_matrix(teacher.grid, grid))
    found: list[Float[np.ndarray, "N b"]] = []
    starts = range(0, len(references), BATCH)
    for start in track(starts, len(starts), f"{identity.teacher}: features", "batches"):
        pixels = []
        for reference in references[start : start + BATCH]:
            try:
                pixels.append(prepare(reference, teacher.preprocessing, identity.geometry)[0])
            except UnreadableImage as error:
                raise UserError(f"{reference} cannot be read: {error}") from None
        batch = torch.stack(pixels).to(device=place, dtype=DTYPES[identity.dtype])
        tokens = encode(teacher, batch, identity.features).tokens.float().cpu()
        found += list((tokens if teacher.grid == grid else matrix @ tokens).numpy())
    return found
