"""Scores of a whole set, from counts that are summed over its reports before any quotient.

Each takes counts (..., L, K) and returns values (...,), so that an interval can leave out one
cluster after another.
"""

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.float64]


def micro_f1(counts: Counts) -> Counts:
    """F1 from true positives, false positives and false negatives, summed over the labels first."""
    return macro_f1(counts.sum(axis=-2, keepdims=True))


def macro_f1(counts: Counts) -> Counts:
    """Mean of the labels' F1; a label of which nothing was counted has 0."""
    right, wrong = 2 * counts[..., 0], counts[..., 1] + counts[..., 2]
    f1 = np.divide(right, right + wrong, out=np.zeros_like(right), where=right + wrong > 0)
    return np.asarray(f1.mean(axis=-1))


def bleu(counts: Counts) -> Counts:
    """Corpus BLEU (Papineni et al. 2002), uniform weights, with the constants of COCO's code.

    A row of `counts` for each length of n-grams: those that match, those of the predictions, the
    predictions' words and the references'.
    """
    tiny, small = 1e-15, 1e-9
    precisions = (counts[..., 0] + tiny) / (counts[..., 1] + small)
    ratio = (counts[..., 0, 2] + tiny) / (counts[..., 0, 3] + small)
    logs = np.log(precisions).mean(axis=-1) + np.minimum(0.0, 1 - 1 / ratio)
    return np.asarray(np.exp(logs))
