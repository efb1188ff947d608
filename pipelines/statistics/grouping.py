"""Values by cluster: questions about one image, or one patient, are not independent."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def by_cluster(
    values: Sequence[float] | Values, clusters: Sequence[Hashable] | None
) -> tuple[Values, Values]:
    """Sum and count of the values of each cluster, in order of first appearance.

    Both float64 (C,). `clusters` names the cluster of each value; None makes every value its own.

    Raises
    ------
    ValueError
        There are no values, one is not finite, or there is not a cluster for each.
    """
    data = np.asarray(values, dtype=np.float64)
    if not len(data):
        raise ValueError("no values to summarise")
    if not np.isfinite(data).all():
        raise ValueError("a value is not a finite number")
    if clusters is None:
        return data, np.ones(len(data))
    if len(clusters) != len(data):
        raise ValueError(f"{len(data)} values but {len(clusters)} cluster names")
    rows = numbered(clusters)
    sums = np.bincount(rows, weights=data).astype(np.float64)
    return sums, np.bincount(rows).astype(np.float64)


def numbered(clusters: Sequence[Hashable]) -> NDArray[np.intp]:
    """Return the number of each value's cluster, in order of first appearance."""
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(name, len(number)) for name in clusters], dtype=np.intp)
