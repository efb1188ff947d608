"""A map that is linear in the patch and in the words: ridge regression in closed form.

Wanted is a matrix W with patch . W . words near the share of the patch in the region that the words
name: ridge regression on the products of both. Every label has a share in every patch (an image
without its region shows none), so that the design is a Kronecker product, and with
Z^T Z = P diag(p) P^T of the patches and E^T E = Q diag(q) Q^T of the words

    W = P [ (P^T Z^T Y E Q) / (p q^T + penalty) ] Q^T

(Golub and Van Loan, Matrix Computations, 12.3; Talk2DINO, arXiv 2411.19331, fits such a map by
gradient steps.)

n patches in all, b teacher width, L labels, c width of the words' embedding.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

RIDGE = 0.01  # of the patches' number: features have variance 1
Patches = Float[np.ndarray, "_ b"]
Wanted = Float[np.ndarray, "_ L"]


def fit(
    images: Iterable[tuple[Patches, Wanted]], words: Float[np.ndarray, "L c"]
) -> Float[np.ndarray, "b_and_1 c"]:
    """Fit W and the intercept on images given one by one, which are read once.

    Parameters
    ----------
    images
        Of each: E_v of its visible patches, and each patch's share in the region of each label.
    words
        Unit embeddings of the labels' words.

    Returns
    -------
    (b + 1, c): a map is [E_v, 1] @ this @ words of the question, cut off at 0.
    """
    total = 0
    patches = shares = squares = products = np.zeros(())  # of the sums' shapes with the first image
    for features, wanted in images:
        z, y = np.asarray(features, np.float64), np.asarray(wanted, np.float64)
        total += len(z)
        patches, shares = patches + z.sum(0), shares + y.sum(0)
        squares, products = squares + z.T @ z, products + z.T @ y
    mean, level = np.asarray(patches) / total, np.asarray(shares) / total
    covariance = np.asarray(squares) / total - np.outer(mean, mean)
    deviation = np.sqrt(np.maximum(np.diag(covariance), np.finfo(np.float64).tiny))
    scale = np.outer(deviation, deviation)
    correlation = total * covariance / scale
    cross = total * (np.asarray(products) / total - np.outer(mean, level)) / deviation[:, None]
    weights = _solve(correlation, cross, np.asarray(words, np.float64), RIDGE * total)
    turned = weights / deviation[:, None]
    offset = np.linalg.pinv(words) @ level - mean @ turned
    return np.vstack([turned, offset])


def _solve(
    correlation: NDArray[np.float64],
    cross: NDArray[np.float64],
    words: NDArray[np.float64],
    penalty: float,
) -> NDArray[np.float64]:
    """Return W (b, c) by the formula above."""
    p, left = np.linalg.eigh(correlation)
    _, sizes, right = np.linalg.svd(words, full_matrices=False)
    inner = left.T @ cross @ words @ right.T
    inner /= p[:, None].clip(min=0) * sizes**2 + penalty
    solved: NDArray[np.float64] = left @ inner @ right
    return solved
