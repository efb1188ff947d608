"""Deletion and insertion: whether a map names the patches that the teacher's score hangs on.

Petsiuk et al., RISE (BMVC 2018; github.com/eclique/RISE, evaluation.py), by patches:

- **deletion**: patches become the mean colour, from the highest of the map down. Lower is better.
- **insertion**: patches of the image come into a blurred copy of it, in the same order. Higher is
  better.

Each is the area under the score over the share of patches changed. The blur is RISE's: a Gaussian
of sigma 5 cut off at 5 pixels of a side of 224, in proportion for other sides. Equal patches of a
map change in a random order, so that a map which says nothing is a random one.

N patches of the grid, K pictures.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from pipelines.regions.grounding import Map
from shared.imaging.grid import Grid

DELETION, INSERTION = "deletion", "insertion"
STEPS = 10  # of equal shares
SIDE, SIGMA, RADIUS = 224, 5.0, 5  # of RISE's blur, in pixels
BATCH = 8  # pictures of one pass

# Of pictures (K, 3, size, size) as the encoder wants them: a score each.
Score = Callable[[Float[Tensor, "K 3 size size"]], Float[np.ndarray, " K"]]


def areas(
    pixels: Float[Tensor, "3 size size"],
    maps: Mapping[str, Map],
    visible: NDArray[np.bool_],
    grid: Grid,
    score: Score,
    seed: int = 0,
    steps: int = STEPS,
) -> dict[str, dict[str, float]]:
    """Return both areas of each map of one image.

    Parameters
    ----------
    pixels
        Normalised, so that the mean colour is 0.
    maps
        By name, (N,) on `grid`, which is laid over the whole square.
    visible
        (N,) patches that show image; the others stay as they are.
    score
        Of pictures.
    seed
        Of the order of equal patches.
    steps
        From the whole image to none of it.
    """
    place = torch.from_numpy(patch_of_pixels(pixels.shape[-1], grid))
    blank, blurred = torch.zeros_like(pixels), blur(pixels)
    shown = np.flatnonzero(visible)
    order = np.random.default_rng(seed).permutation(shown)
    steps = min(steps, len(shown))
    # Whole numbers of patches, as even as they can be.
    counts = np.rint(np.linspace(0, len(shown), steps + 1)).astype(int)
    every = torch.from_numpy(np.asarray(visible))[place]
    ends = score(
        torch.stack([pixels, *(torch.where(every, to, pixels) for to in (blank, blurred))])
    )
    whole, none, dim = (float(one) for one in ends)
    found = {}
    for name, map_ in maps.items():
        falling = order[np.argsort(-np.asarray(map_, np.float64)[order], kind="stable")]
        changed = np.zeros((steps - 1, grid.size), dtype=bool)
        for row, count in enumerate(counts[1:-1]):
            changed[row, falling[:count]] = True
        masks = torch.from_numpy(changed)
        deleted = _scores(score, masks[:, place], blank, pixels)
        inserted = _scores(score, (~masks)[:, place] & every, blurred, pixels)
        share = counts / len(shown)
        found[name] = {
            DELETION: float(np.trapezoid([whole, *deleted, none], share)),
            INSERTION: float(np.trapezoid([dim, *inserted, whole], share)),
        }
    return found


def blur(pixels: Float[Tensor, "3 size size"]) -> Float[Tensor, "3 size size"]:
    """Return a picture behind RISE's Gaussian."""
    from scipy.ndimage import gaussian_filter

    scale = pixels.shape[-1] / SIDE
    radius = max(1, round(RADIUS * scale))
    sigma = SIGMA * scale
    soft = gaussian_filter(pixels.numpy(), (0, sigma, sigma), radius=(0, radius, radius))
    return torch.from_numpy(soft)


def patch_of_pixels(size: int, grid: Grid) -> NDArray[np.int64]:
    """Return which patch of a grid over the square each pixel's middle lies in, (size, size)."""
    middles = (np.arange(size) + 0.5) / size
    rows, columns = ((middles * count).astype(np.int64) for count in grid)
    return rows[:, None] * grid.columns + columns


def _scores(
    score: Score, masks: Bool[Tensor, "K size size"], to: Tensor, pixels: Tensor
) -> Iterator[float]:
    """Yield the score of each picture whose masked pixels are those of `to`."""
    for start in range(0, len(masks), BATCH):
        some = masks[start : start + BATCH, None]
        yield from score(torch.where(some, to, pixels)).tolist()
