"""Does a map point at the region? Scores of one map over the patches of one image.

- pointing game: whether the centre of the highest patch lies in the region (ties: the mean over
  them);
- energy: the share of the map's sum that falls into the region;
- AUC: the chance that a patch inside is higher than one outside (ties count a half).

All lie in [0, 1], over the patches that show image. Three maps say what a score is worth:
**chance** points at any patch alike, the **prior** is the mean region of other patients, and
**another patient's** map looks at the wrong image.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.regions.patches import Shares

Map = NDArray[np.floating]
SCORES = ("pointing", "energy", "auc")


def grounding(
    map_: Map, shares: Shares, centres: NDArray[np.bool_], visible: NDArray[np.bool_]
) -> dict[str, float]:
    """Score a map against a region.

    Parameters
    ----------
    map_
        (N,) values, not negative.
    shares, centres
        (N,) share of each patch in the region, and whether its centre is.
    visible
        (N,) patches that show image; the others count for nothing.

    Returns
    -------
    The scores by name; without `auc` where the region covers the middle of no patch, or of all.
    """
    values, share = np.asarray(map_, dtype=np.float64)[visible], shares[visible]
    within = centres[visible]
    highest = values == values.max()
    total = values.sum()
    even = np.full(len(values), 1 / len(values))
    weights = values / total if total > 0 else even
    scores = {"pointing": float(within[highest].mean()), "energy": float(weights @ share)}
    if 0 < within.sum() < len(within):
        scores["auc"] = auc(values, within)
    return scores


def chance(
    shares: Shares, centres: NDArray[np.bool_], visible: NDArray[np.bool_]
) -> dict[str, float]:
    """Scores of a map that says nothing."""
    return grounding(np.ones(len(shares)), shares, centres, visible)


def auc(values: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve by ranks (Mann and Whitney); ties count a half."""
    from scipy.stats import rankdata

    ranks = rankdata(values)
    count = int(positive.sum())
    below = float(ranks[positive].sum()) - count * (count + 1) / 2
    return below / (count * (len(values) - count))


def priors(shares: Mapping[str, Shares], patients: Mapping[str, str]) -> dict[str, Shares]:
    """For each image, the mean region of the other patients' images.

    Parameters
    ----------
    shares
        The region of each image that has one, (N,).
    patients
        Whose each image is.
    """
    found = {}
    for name in shares:
        others = [one for other, one in shares.items() if patients[other] != patients[name]]
        if others:
            found[name] = np.mean(others, axis=0)
    return found


def partners(names: Sequence[str], patients: Mapping[str, str], seed: int = 0) -> dict[str, str]:
    """For each image, one of another patient; every image is a partner about once.

    Images of a patient who has more than half of them are left out.
    """
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    found = {}
    for place, name in enumerate(order):
        for step in range(1, len(order)):
            other = order[(place + step) % len(order)]
            if patients[other] != patients[name]:
                found[name] = other
                break
    return found
