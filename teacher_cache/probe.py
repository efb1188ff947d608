"""What encoding costs: some images through the pipeline of a build, once it runs steadily."""

import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from math import sqrt
from statistics import fmean, stdev
from typing import NamedTuple

from shared.console import track
from shared.imaging.contained import AnyReference
from shared.imaging.images import ImageReference
from shared.targets import Identity, TargetWriter
from shared.targets.namespace import Namespace
from shared.targets.numbers.arrays import Arrays
from shared.targets.segment.manifest import read_manifest
from teacher_cache.containers.tables import RowImage
from teacher_cache.stream import READ_AHEAD, WRITE_BEHIND, Outcome

WARM = READ_AHEAD + WRITE_BEHIND + 1  # batches: the first pass, and those that fill the pipeline
MEASURED = 8  # batches at least
SECONDS = 5.0  # at least, so that a fast device is measured over more than moments
_CONFIDENCE = 0.95
_GOLDEN = (sqrt(5) - 1) / 2

Flow = Callable[[list[bytes], Callable[[bytes, Arrays], None]], Generator[Outcome]]


class Rate(NamedTuple):
    """Seconds an image: their mean, and the ends of its 95% interval (Student's t over batches).

    The three are one where every image was encoded: nothing is left to foretell.
    """

    seconds: float
    low: float
    high: float


class Probe(NamedTuple):
    """What the probe found: outcomes, images stored and their bytes; no rate where none was."""

    outcomes: list[Outcome]
    stored: int
    size: int
    rate: Rate | None

    @property
    def record_size(self) -> float | None:
        """Bytes of one image; None where none was stored."""
        return self.size / self.stored if self.stored else None


def probe(
    keys: Sequence[bytes],
    by_key: Mapping[bytes, AnyReference],
    identity: Identity,
    batch_size: int,
    flow: Flow,
) -> Probe:
    """Encode images into a temporary store until `MEASURED` batches and `SECONDS` are measured.

    Measured is what lies behind the first `WARM` batches, while more images are being read: neither
    the filling of the pipeline nor its draining. Where the images are too few for that, all are
    encoded, and the whole time is the answer, as it is a build's.

    Parameters
    ----------
    keys
        Images that a build would encode; those of one file together, as a build reads them.
    flow
        `teacher_cache.stream.stream` of a teacher, over keys and into a function.
    """
    order = _spread(keys, by_key)
    outcomes: list[Outcome] = []
    ends: list[float] = []
    total = min(len(order), (WARM + MEASURED) * batch_size)
    with tempfile.TemporaryDirectory(prefix="medalign-plan-") as folder:
        begin = time.perf_counter()
        with TargetWriter(folder, identity) as writer:
            scale = _Scale(writer.namespace)

            def add(key: bytes, arrays: Arrays) -> None:
                writer.add(key, arrays)
                scale.weigh()

            with closing(flow(order, add)) as results:
                for outcome in track(results, total, "probing", "images"):
                    outcomes.append(outcome)
                    if len(outcomes) % batch_size == 0:
                        ends.append(time.perf_counter())
                        if _enough(ends[WARM - 1 :]):
                            break
        seconds = time.perf_counter() - begin
        scale.weigh()
    return Probe(
        outcomes,
        scale.records,
        scale.size,
        _rate(ends[WARM - 1 :], batch_size, seconds, len(outcomes) == len(order), len(order))
        if scale.records
        else None,
    )


def _spread(keys: Iterable[bytes], by_key: Mapping[bytes, AnyReference]) -> list[bytes]:
    """Order images so that each beginning of the list holds some of everywhere.

    Neighbours are often of one size. The images of one file stay together: a build reads a volume
    once for all of its slices.
    """
    files: dict[object, list[bytes]] = {}
    for key in keys:
        files.setdefault(_read_together(by_key[key]), []).append(key)
    groups = list(files.values())
    order = sorted(range(len(groups)), key=lambda number: number * _GOLDEN % 1)
    return [key for number in order for key in groups[number]]


def _read_together(reference: AnyReference) -> object:
    """Return what the images have in common that are read fastest one after another."""
    if isinstance(reference, RowImage):
        return reference.table
    return reference.path if isinstance(reference, ImageReference) else reference


def _enough(ends: Sequence[float]) -> bool:
    return len(ends) > MEASURED and ends[-1] - ends[0] >= SECONDS


def _rate(
    ends: Sequence[float], batch_size: int, seconds: float, all_done: bool, images: int
) -> Rate:
    if all_done:
        return Rate(*[seconds / images] * 3)
    return interval([(end - start) / batch_size for start, end in pairwise(ends)])


def interval(seconds: Sequence[float]) -> Rate:
    """Return the mean of seconds per image, one number per batch, and its 95% interval."""
    from scipy.stats import t

    mean = fmean(seconds)
    half = float(t.ppf((1 + _CONFIDENCE) / 2, len(seconds) - 1)) * stdev(seconds)
    half /= sqrt(len(seconds))
    return Rate(mean, max(mean - half, min(seconds)), mean + half)


class _Scale:
    """Counts records and bytes of published segments, and removes them: the disk may be small."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self.records = self.size = 0

    def weigh(self) -> None:
        """Count what has been published since."""
        for segment in self._namespace.segments():
            manifest = read_manifest(self._namespace, segment)
            self.records += manifest.records
            self.size += manifest.size
            self._namespace.storage.remove(self._namespace.path("segments", segment))
