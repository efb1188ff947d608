"""Running the teacher again on records of a store, to see whether they are what it says today."""

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.console import track
from shared.errors import UserError
from shared.imaging.contained import AnyReference
from shared.imaging.grid import Grid
from shared.processes import choose_device
from shared.targets import Identity, Target, TargetStore
from shared.targets.numbers.arrays import Arrays
from shared.targets.numbers.query import NAMES
from shared.targets.numbers.restore import targets_on
from teacher_cache.distinct import distinct_images
from teacher_cache.preparing import reading
from teacher_cache.settings import load_for, settings_of, teachers_differ
from teacher_cache.stream import LeftOut, named, stream

# What two machines or two batch sizes may differ by, in a similarity and in a share of the largest
# attention weight: sums in another order, and the rounding of what is stored.
PATCHES = (
    0.005  # twice the largest error of S that int8 made on real images (docs/performance-store.md)
)
ROUNDING = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 1e-1}
INT8 = 1 / 127  # one step of the array `query`, as below
QUANTISATION = 1 / 127.5  # one step of u8: two computations may fall on either side of a border


class Deviation(NamedTuple):
    """How far the stored targets are from today's, over `records` images.

    `allowed` is what rounding explains.

    `similarity` is the largest difference and `worst` its image; `attention` is the largest
    difference in units of the image's largest weight, of which rounding explains
    `allowed_attention`. `query` is the largest difference of R B in units of the image's largest
    number, of which `allowed_query` is explained; None where the store cannot be asked.
    """

    namespace: str
    records: int
    similarity: float
    attention: float
    coverage_differs: int
    worst: AnyReference | None
    allowed: float
    allowed_attention: float
    left_out: LeftOut
    query: float | None = None
    allowed_query: float | None = None

    @property
    def sound(self) -> bool:
        """Whether every record is within what rounding explains."""
        close = self.similarity <= self.allowed and self.attention <= self.allowed_attention
        asked = self.query is None or self.query <= (self.allowed_query or 0.0)
        return close and asked and not self.coverage_differs

    def as_json(self) -> dict[str, object]:
        """Plain values for `--json`."""
        plain = {**self._asdict(), "left_out": named(self.left_out), "sound": self.sound}
        return {**plain, "worst": self.worst and str(self.worst)}


class _Difference(NamedTuple):
    """How far one image's stored target is from today's; in the order of what is worst."""

    similarity: float
    attention: float
    same_coverage: bool
    key: bytes
    query: float | None


def resample(
    store: str | Path,
    images: Iterable[AnyReference],
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
    _check_encoded(opened)
    place = choose_device(device)
    loaded, found = load_for(identity.teacher, weights, settings_of(identity), place)
    difference = teachers_differ(identity, found)
    if difference is not None:
        raise UserError(
            f"this is not the teacher of {opened.namespace.name}: {difference.field} is "
            f"{difference.second!r}, "
            f"in the store {difference.first!r}; pass the store's own weights as --weights"
        )
    loaded = reading(loaded, opened.namespace)
    by_key, _, _ = distinct_images(list(images), workers)
    sample = _drawn(opened, list(by_key), count)
    differences: list[_Difference] = []

    def compare(key: bytes, arrays: Arrays) -> None:
        query = None if identity.query is None else _apart(opened, key, arrays)
        differences.append(_difference(key, opened[key], _target(arrays, identity), query))

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
    worst = max(differences, default=None, key=lambda one: (one.similarity, one.attention))
    asked = [one.query for one in differences if one.query is not None]
    return Deviation(
        namespace=opened.namespace.name,
        records=len(differences),
        similarity=worst.similarity if worst else 0.0,
        attention=max((one.attention for one in differences), default=0.0),
        coverage_differs=sum(not one.same_coverage for one in differences),
        worst=by_key[worst.key] if worst else None,
        allowed=allowed_deviation(identity),
        allowed_attention=ROUNDING[identity.dtype],
        left_out=failures,
        query=max(asked, default=None),
        allowed_query=None if identity.query is None else ROUNDING[identity.dtype] + INT8,
    )


def _check_encoded(opened: TargetStore) -> None:
    """Refuse targets that no teacher here made: imported ones, and controls."""
    for how in ("imported", "control"):
        if how in opened.namespace.provenance:
            raise UserError(
                f"no teacher can make the targets of {opened.namespace.name} again: they are "
                f"{'imported' if how == 'imported' else 'a control'} "
                f"({opened.namespace.provenance[how]}); leave --resample out"
            )


def _drawn(opened: TargetStore, keys: list[bytes], count: int) -> list[bytes]:
    """Draw `count` of those of `keys` that the store has, in their order: a container's own."""
    absent = set(opened.missing(keys))
    held = [key for key in keys if key not in absent]
    if not held:
        raise UserError(
            f"none of these {len(keys)} images is in {opened.namespace.name}: pass those it was "
            "built from"
        )
    drawn = np.random.default_rng().permutation(len(held))[:count]
    return [held[number] for number in sorted(drawn.tolist())]


def _apart(opened: TargetStore, key: bytes, fresh: Arrays) -> float:
    """Return the largest difference of R B, in units of its largest number."""
    kept = opened.arrays([key], NAMES)
    first, second = (
        values.astype(np.float32) * scale.astype(np.float32)[:, None]
        for values, scale in (
            (kept["query"][0], kept["query_scale"][0]),
            (np.asarray(fresh["query"]), np.asarray(fresh["query_scale"])),
        )
    )
    return float(np.abs(first - second).max() / max(float(np.abs(first).max()), 1e-30))


def _difference(key: bytes, stored: Target, fresh: Target, query: float | None) -> _Difference:
    similarity = np.abs(
        stored.similarity.astype(np.float32) - fresh.similarity.astype(np.float32)
    ).max(initial=0)
    attention = 0.0
    if stored.attention is not None and fresh.attention is not None:
        largest = stored.attention.max(initial=1e-30)
        attention = float(np.abs(stored.attention - fresh.attention).max(initial=0) / largest)
    same = np.array_equal(stored.coverage, fresh.coverage)
    return _Difference(float(similarity), attention, same, key, query)


def allowed_deviation(identity: Identity) -> float:
    """Return the largest difference of a similarity that rounding explains.

    Between two runs of one teacher on one image.
    """
    stored = QUANTISATION if identity.precision == "u8" and identity.encoding == "matrix" else 0.0
    tolerance = PATCHES if identity.encoding == "patches" else identity.tolerance or 0.0
    return ROUNDING[identity.dtype] + stored + 2 * tolerance


def _target(arrays: Arrays, identity: Identity) -> Target:
    """Return what a reader would get of the arrays of one image."""
    if identity.encoding == "matrix":
        return Target(arrays["similarity"], arrays.get("attention"), arrays["coverage"])
    grid = Grid(*identity.grid)
    batch = {name: np.asarray(values)[None] for name, values in arrays.items()}
    similarity, attention, coverage = targets_on(batch, grid, grid)
    return Target(similarity[0], None if attention is None else attention[0], coverage[0])
