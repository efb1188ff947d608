"""Whether features know the regions at all: a linear map of a patch's features to its share.

Ridge regression over the patches of all patients but those of one fold, whose images are then
scored; five folds, each patient in one. Features are standardised on the patients that are fitted.
The read-out sees no place but what the features say of it.

N patches of an image, b teacher width, n patches in all.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from pipelines.regions.patches import Shares

FOLDS = 5
RIDGE = 0.01  # of the patches' number: features have variance 1


def read_out(
    features: Sequence[Float[np.ndarray, "N b"]],
    shares: Sequence[Shares],
    visible: Sequence[NDArray[np.bool_]],
    patients: Sequence[str],
    seed: int = 0,
) -> list[Float[np.ndarray, " N"]] | None:
    """Predict each image's shares from the other folds' patients.

    Parameters
    ----------
    features, shares, visible
        Of each image: E_v, the share of each patch in a region, the patches that show image.
    patients
        Whose each image is.
    seed
        Of the folds.

    Returns
    -------
    A map for each image, cut off at 0; None with fewer patients than two a fold.
    """
    names = sorted(set(patients))
    if len(names) < 2 * FOLDS:
        return None
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {names[place]: number % FOLDS for number, place in enumerate(order.tolist())}
    maps: list[Float[np.ndarray, " N"]] = [np.empty(0)] * len(features)
    for number in range(FOLDS):
        fitted = [row for row, patient in enumerate(patients) if fold[patient] != number]
        intercept, weights = _fit(
            np.concatenate([features[row][visible[row]] for row in fitted]),
            np.concatenate([shares[row][visible[row]] for row in fitted]),
        )
        for row, patient in enumerate(patients):
            if fold[patient] == number:
                maps[row] = np.maximum(intercept + features[row] @ weights, 0.0)
    return maps


def _fit(
    features: Float[np.ndarray, "n b"], wanted: Float[np.ndarray, " n"]
) -> tuple[float, Float[np.ndarray, " b"]]:
    """Return intercept and weights of a ridge regression on standardised features."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    model = Ridge(alpha=RIDGE * len(features)).fit(scaler.transform(features), wanted)
    weights: NDArray[np.float64] = model.coef_ / scaler.scale_
    return float(model.intercept_ - weights @ scaler.mean_), weights
