"""What a build would do, before it runs: records, duplicates, bytes on disk, hours.

Writes nothing to the store.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from shared.console import track
from shared.imaging.images import ImageReference
from shared.processes import choose_device
from shared.targets import Identity, TargetWriter
from shared.targets.namespace import find_namespace
from shared.targets.numbers.arrays import Arrays
from shared.targets.segment.manifest import check_segment
from teacher_cache.building import missing_keys
from teacher_cache.distinct import distinct_images
from teacher_cache.settings import Settings, load_for
from teacher_cache.stream import LeftOut, Outcome, named, stream


class Plan(NamedTuple):
    """What `cache build` would do with these images.

    Attributes
    ----------
    images, distinct, found, missing
        References asked for; different images among them; of these in the store, and not.
    duplicates
        References whose image is another's, byte by byte: (the repeated one, the first one).
    left_out
        Files that cannot be opened, and images of the probe that a build would quarantine, with the
        reason.
    probed, images_per_second, bytes_per_record
        What the probe encoded and found; the last two None where it could encode none of its
        images.
    bytes, hours
        Expected for the missing ones.
    free
        Bytes free where the store is meant to be; None without a store or in an object store.
    """

    namespace: str
    images: int
    distinct: int
    found: int
    missing: int
    duplicates: list[tuple[ImageReference, ImageReference]]
    left_out: LeftOut
    probed: int
    images_per_second: float | None
    bytes_per_record: float | None
    bytes: float | None
    hours: float | None
    free: int | None = None

    def as_json(self) -> dict[str, object]:
        """Plain values for `--json`."""
        duplicates = [
            {"image": str(repeated), "same_as": str(first)} for repeated, first in self.duplicates
        ]
        return {**self._asdict(), "duplicates": duplicates, "left_out": named(self.left_out)}


def plan(
    teacher: str,
    images: Iterable[ImageReference],
    store: str | Path | None = None,
    *,
    weights: str | None = None,
    settings: Settings = Settings(),
    batch_size: int = 8,
    workers: int = 2,
    device: str = "auto",
) -> Plan:
    """Count what `build` would find, and measure its rate and record size on a few of the images.

    Parameters
    ----------
    store
        The store that the build is meant for; None, or one that is not there, counts every image as
        missing. The others are those of `build`.

    Raises
    ------
    UserError
        As `build`.
    """
    place = choose_device(device)
    references = list(images)
    loaded, identity = load_for(teacher, weights, settings, place)
    by_key, repeated, left_out = distinct_images(references, workers)
    duplicates = [(again, by_key[key]) for again, key in repeated]
    namespace = find_namespace(store, identity) if store is not None else None
    missing = list(by_key) if namespace is None else missing_keys(namespace, by_key)

    # Spread over the list, for neighbours are often of one size.
    count = min(len(missing), 2 * batch_size)
    sample = [missing[number * len(missing) // count] for number in range(count)]

    def run(keys: list[bytes], add: Callable[[bytes, Arrays], None]) -> list[Outcome]:
        flow = stream(
            loaded,
            identity,
            keys,
            by_key,
            add,
            batch_size=batch_size,
            workers=workers,
            device=place,
        )
        with closing(flow):
            return list(track(flow, len(keys), "probing", "images"))

    probe = _probe(sample, identity, run)
    left_out += [(by_key[key], str(error)) for key, error in probe.outcomes if error is not None]
    size, stored = probe.record_size, probe.stored
    return Plan(
        namespace=identity.namespace(),
        images=len(references),
        distinct=len(by_key),
        found=len(by_key) - len(missing),
        missing=len(missing),
        duplicates=duplicates,
        left_out=left_out,
        probed=stored,
        images_per_second=stored / probe.seconds if stored else None,
        bytes_per_record=size,
        bytes=None if size is None else size * len(missing),
        hours=len(missing) * probe.seconds / stored / 3600 if stored else None,
        free=_free(store),
    )


def _free(store: str | Path | None) -> int | None:
    """Bytes free on the disk of a store's folder, or of the nearest folder above that is there."""
    if store is None or "://" in str(store):
        return None
    place = Path(store).expanduser().absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


class _Probe(NamedTuple):
    """What encoding a few images took: `stored` of them, of `size` bytes together."""

    outcomes: list[Outcome]
    stored: int
    size: int
    seconds: float

    @property
    def record_size(self) -> float | None:
        """Bytes of one of them; None where none was stored."""
        return self.size / self.stored if self.stored else None


def _probe(
    sample: list[bytes],
    identity: Identity,
    run: Callable[[list[bytes], Callable[[bytes, Arrays], None]], list[Outcome]],
) -> _Probe:
    """Encode `sample` into a temporary store; one image goes first, untimed, to warm up."""
    run(sample[:1], lambda key, arrays: None)
    with tempfile.TemporaryDirectory(prefix="medalign-plan-") as folder:
        begin = time.perf_counter()
        with TargetWriter(folder, identity, segment_records=max(1, len(sample))) as writer:
            outcomes = run(sample, writer.add)
        seconds = time.perf_counter() - begin
        manifests = [
            check_segment(writer.namespace, segment) for segment in writer.namespace.segments()
        ]
    stored = sum(manifest.records for manifest in manifests)
    return _Probe(outcomes, stored, sum(manifest.size for manifest in manifests), seconds)
