"""How well the features of a region are told apart from others, across patients.

Each region gives the mean feature of its patches. Where there is one label alone, it gives a second
vector under another label: the mean of the patches at its mirror image in the same picture, if no
region is there. A vector is told apart if its nearest neighbour (cosine) among other patients'
vectors has its label. Chance, the share of them that have it, is printed beside it.

N patches, d width of their features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from pipelines.regions.patches import inside, mirrored
from pipelines.regions.reading import Region
from shared.imaging.grid import Grid
from shared.vocabulary import Geometry

Places = list[tuple[str, NDArray[np.bool_]]]  # label and patches (N,)


class Vector(NamedTuple):
    """The mean feature (d,) of some patches: of which image and patient, under which label."""

    image: str
    patient: str
    label: str
    feature: NDArray[np.floating]


class Separated(NamedTuple):
    """Of each vector: whether its nearest neighbour of another patient has its label.

    `chance`: the share of other patients' vectors that have it. `silhouette`: scikit-learn's mean
    over all vectors by cosine, None below two labels.
    """

    images: list[str]
    patients: list[str]
    hits: list[float]
    chance: list[float]
    silhouette: float | None


def separability(vectors: Sequence[Vector]) -> Separated:
    """Score labelled vectors; those without another patient's vector are left out."""
    from sklearn.metrics import silhouette_score

    features = np.stack([one.feature.astype(np.float64) for one in vectors])
    features /= np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    labels = np.array([one.label for one in vectors])
    patients = np.array([one.patient for one in vectors])
    near = features @ features.T
    near[patients[:, None] == patients[None, :]] = -np.inf
    kept = [row for row in range(len(vectors)) if np.isfinite(near[row]).any()]
    hits = [float(labels[int(near[row].argmax())] == labels[row]) for row in kept]
    others = [patients != patients[row] for row in kept]
    share = [
        float((labels[mask] == labels[row]).mean()) for row, mask in zip(kept, others, strict=True)
    ]
    several = 1 < len(set(labels.tolist())) < len(labels)
    score = float(silhouette_score(features, labels, metric="cosine")) if several else None
    return Separated(
        [vectors[row].image for row in kept],
        [vectors[row].patient for row in kept],
        hits,
        share,
        score,
    )


def region_places(
    regions: Sequence[Region],
    width: int,
    height: int,
    grid: Grid,
    geometry: Geometry,
    *,
    alone: bool = True,
) -> Places:
    """Return the patches of each region.

    Where the label stands `alone`, so that nothing is to be told apart, also those of the place
    mirrored from it, if no region is there.
    """
    size = (width, height, grid, geometry)
    taken = inside([region.place for region in regions], *size)
    places = []
    for label, place in regions:
        own = inside([place], *size)
        across = inside([mirrored(place, width)], *size) & ~taken
        if not alone:
            places += [(label, own)] if own.any() else []
        elif own.any() and across.any():
            places += [(label, own), (f"no {label}", across)]
    return places


def vectors_of(
    tokens: Float[np.ndarray, "N d"], image: str, patient: str, places: Places
) -> list[Vector]:
    """Return the mean features of an image's `region_places`."""
    return [Vector(image, patient, label, tokens[own].mean(axis=0)) for label, own in places]


class Hits(NamedTuple):
    """By image: the share of its vectors that are told apart, and what chance would tell apart."""

    hits: dict[str, float]
    chance: dict[str, float]
    silhouette: float | None


def hits_of(vectors: Sequence[Vector]) -> Hits:
    """Score labelled vectors image by image; nothing below two labels."""
    if len({vector.label for vector in vectors}) < 2:
        return Hits({}, {}, None)
    found = separability(vectors)
    return Hits(
        _means(found.images, found.hits), _means(found.images, found.chance), found.silhouette
    )


def _means(images: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    grouped: dict[str, list[float]] = {}
    for image, value in zip(images, values, strict=True):
        grouped.setdefault(image, []).append(value)
    return {image: float(np.mean(one)) for image, one in grouped.items()}
