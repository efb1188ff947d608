"""Separability by layer: at which depth a student's patches tell the regions apart.

The score is `separable` (`separability`), of what enters each decoder layer; at layer l that is
after W. Chance knows the labels alone, so it is one number for all layers.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from pipelines.regions.experts import CHANCE
from pipelines.regions.scoring import Test, Value, tests_of, values_of
from pipelines.regions.separability import Vector, hits_of
from shared.errors import UserError

Scores = dict[str, dict[str, float]]  # item -> layer -> value


class ByLayer(TypedDict):
    """`rows`: by row, then by layer as text; `tests` name the layer as their `score`.

    `silhouette`: scikit-learn's over all regions, by cosine; it has no interval.
    """

    layers: list[int]
    rows: dict[str, dict[str, Value]]
    silhouette: dict[str, dict[str, float | None]]
    tests: list[Test]


def parse_layers(text: str | None) -> list[int] | None:
    """Read decoder layers such as `4,8,12`; None stays None.

    Raises
    ------
    UserError
        Something else stands there.
    """
    if text is None:
        return None
    names = [one.strip() for one in text.split(",") if one.strip()]
    if not names or not all(name.isdecimal() for name in names):
        raise UserError(f"--layers {text}: write decoder layers, joined by commas, from 0")
    return list(dict.fromkeys(int(name) for name in names))


def by_layer(
    vectors: Mapping[str, Mapping[int, Sequence[Vector]]],
    pairs: Sequence[tuple[str, str]],
    patients: Mapping[str, str],
) -> ByLayer | None:
    """Score the regions' mean features; None where no two patients' regions can be compared.

    Parameters
    ----------
    vectors
        Of each row, by layer.
    pairs
        Rows that are tested against each other, layer by layer, in one family of tests.
    patients
        Whose each image is.
    """
    rows: dict[str, Scores] = {}
    silhouette: dict[str, dict[str, float | None]] = {}
    for row, layers in vectors.items():
        for layer, own in layers.items():
            found = hits_of(own)
            silhouette.setdefault(row, {})[str(layer)] = found.silhouette
            for name, values in ((row, found.hits), (CHANCE, found.chance)):
                for image, value in values.items():
                    rows.setdefault(name, {}).setdefault(image, {})[str(layer)] = value
    if not rows:
        return None
    return {
        "layers": list(next(iter(vectors.values()))),
        "rows": values_of(rows, patients),
        "silhouette": silhouette,
        "tests": tests_of(pairs, rows, patients),
    }
