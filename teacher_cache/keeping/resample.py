"""Running the teacher again on records of a store, to see whether they are what it says today."""

from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.console import track
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.imaging.images import ImageReference
from shared.processes import choose_device
from shared.targets import Identity, Target, TargetStore, first_difference
from shared.targets.numbers.arrays import Arrays
from shared.targets.numbers.restore import targets_of_factors
from teacher_cache.distinct import distinct_images
from teacher_cache.settings import load_for, settings_of
from teacher_cache.stream import stream

# What two machines or two batch sizes may differ by, in a similarity and in a share of the largest
# attention weight: sums in another order, and the rounding of what is stored.
ROUNDING = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 1e-1}
QUANTISATION = 1 / 127.5  # one step of u8: two computations may fall on either side of a border


class Deviation(NamedTuple):
    """How far the stored targets are from today's, over `records` images.

    `allowed` is what rounding explains.

    `similarity` is the largest difference and `worst` its image; `attention` is the largest
    difference in units of the image's largest weight, of which rounding explains
    `allowed_attention`.
    """

    namespace: str
    records: int
    similarity: float
    attention: float
    coverage_differs: int
    worst: ImageReference | None
    allowed: float
    allowed_attention: float
    left_out: list[tuple[ImageReference, str]]

    @property
    def sound(self) -> bool:
        """Whether every record is within what rounding explains."""
        close = self.similarity <= self.allowed and self.attention <= self.allowed_attention
        return close and not self.coverage_differs


def resample(
    store: str | Path,
    images: Iterable[ImageReference],
    count: int,
    *,
    teacher: str | None = None,
    fingerprint: str | None = None,
    weights: str | None = None,
    batch_size: int = 8,
    workers: int = 2,
    device: str = "auto",
) -> Deviation:
    """Run the teacher on `count` random records whose images are among `images`, and compare.

    Parameters
    ----------
    teacher, fingerprint
        Which namespace, where the store holds several.
    weights
        As for `build`; they must be those of the store.

    Raises
    ------
    UserError
        Weights other than the store's (naming the field that differs), or none of the images is in
        the store.
    DamagedSegment
        A record that was drawn is damaged.
    """
    opened = TargetStore.open(store, teacher, fingerprint)
    identity = opened.identity
    place = choose_device(device)
    loaded, found = load_for(identity.teacher, weights, settings_of(identity), place)
    difference = first_difference(identity, found)
    if difference is not None:
        raise UserError(
            f"this is not the teacher of {opened.namespace.name}: {difference.field} is "
            f"{difference.second!r}, "
            f"in the store {difference.first!r}; pass the store's own weights as --weights"
        )
    by_key, _, _ = distinct_images(list(images), workers)
    absent = set(opened.missing(by_key))
    keys = [key for key in by_key if key not in absent]
    if not keys:
        raise UserError(
            f"none of these {len(by_key)} images is in {opened.namespace.name}: pass those it was "
            "built from"
        )
    drawn = np.random.default_rng().permutation(len(keys))[:count]
    sample = [keys[number] for number in drawn]

    differences: list[tuple[float, float, bool, bytes]] = []

    def compare(key: bytes, record: Arrays) -> None:
        stored, fresh = opened[key], _target(record, identity)
        similarity = np.abs(
            stored.similarity.astype(np.float32) - fresh.similarity.astype(np.float32)
        ).max(initial=0)
        attention = np.abs(stored.attention - fresh.attention).max(
            initial=0
        ) / stored.attention.max(initial=1e-30)
        same = np.array_equal(stored.coverage, fresh.coverage)
        differences.append((float(similarity), float(attention), same, key))

    flow = stream(
        loaded,
        identity,
        sample,
        by_key,
        compare,
        batch_size=batch_size,
        workers=workers,
        device=place,
    )
    with closing(flow):
        failures = [
            (by_key[key], str(error))
            for key, error in track(flow, len(sample), "resampling", "images")
            if error
        ]
    worst = max(differences, default=None)
    return Deviation(
        namespace=opened.namespace.name,
        records=len(differences),
        similarity=worst[0] if worst else 0.0,
        attention=max((row[1] for row in differences), default=0.0),
        coverage_differs=sum(not row[2] for row in differences),
        worst=by_key[worst[3]] if worst else None,
        allowed=allowed_deviation(identity),
        allowed_attention=ROUNDING[identity.dtype],
        left_out=failures,
    )


def allowed_deviation(identity: Identity) -> float:
    """Return the largest difference of a similarity that rounding explains between two runs on one image."""
    stored = QUANTISATION if identity.precision == "u8" and identity.encoding == "matrix" else 0.0
    return ROUNDING[identity.dtype] + stored + 2 * (identity.tolerance or 0.0)


def _target(record: Arrays, identity: Identity) -> Target:
    """Return what a reader would get of a record."""
    if identity.encoding == "matrix":
        return Target(record["similarity"], record["attention"], record["coverage"])
    grid = Grid(*identity.grid)
    arrays: Mapping[str, np.ndarray] = {
        name: np.asarray(values)[None] for name, values in record.items()
    }
    return Target(*(values[0] for values in targets_of_factors(dict(arrays), grid, grid)))
