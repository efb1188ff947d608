"""What a build would do, before it runs: records, duplicates, bytes on disk, hours.

Writes nothing to the store.
"""

import shutil
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import NamedTuple

from shared.imaging.contained import AnyReference
from shared.processes import choose_device
from shared.targets.namespace import Namespace, find_namespace
from shared.targets.numbers.arrays import Arrays
from teacher_cache.building import check_format, known_reasons
from teacher_cache.distinct import distinct_images
from teacher_cache.missing import missing_keys
from teacher_cache.preparing import load_ready
from teacher_cache.probe import probe
from teacher_cache.settings import Settings
from teacher_cache.stream import LeftOut, Outcome, named, stream


class Plan(NamedTuple):
    """What `cache build` would do with these images.

    Attributes
    ----------
    images, distinct, found, missing, quarantined
        References asked for; different images among them. Of these: in the store; to encode; and
        left out by an earlier build, which a build tries again.
    duplicates
        References whose image is another's, byte by byte: (the repeated one, the first one).
    left_out
        Files that cannot be opened, and images of the probe that a build would quarantine, with the
        reason.
    probed, images_per_second, bytes_per_record
        What the probe encoded and found; the last two None where it could encode none of its
        images.
    bytes
        Expected for the missing ones.
    hours
        Expected of a build like this: loading the teacher, naming the images by their content, and
        encoding the missing ones. `hours_interval` are the ends of its 95% interval, which is that
        of the rate.
    loading_seconds, naming_seconds
        These two parts, as they took just now. A build that follows here remembers names.
    free
        Bytes free where the store is meant to be; None without a store or in an object store.
    """

    namespace: str
    images: int
    distinct: int
    found: int
    missing: int
    quarantined: int
    duplicates: list[tuple[AnyReference, AnyReference]]
    left_out: LeftOut
    probed: int
    images_per_second: float | None
    rate_interval: tuple[float, float] | None
    bytes_per_record: float | None
    bytes: float | None
    hours: float | None
    hours_interval: tuple[float, float] | None
    loading_seconds: float
    naming_seconds: float
    free: int | None = None

    def as_json(self) -> dict[str, object]:
        """Plain values for `--json`."""
        duplicates = [
            {"image": str(repeated), "same_as": str(first)} for repeated, first in self.duplicates
        ]
        return {**self._asdict(), "duplicates": duplicates, "left_out": named(self.left_out)}


def plan(
    teacher: str,
    images: Iterable[AnyReference],
    store: str | Path | None = None,
    *,
    weights: str | None = None,
    settings: Settings = Settings(),
    batch_size: int = 8,
    workers: int = 2,
    device: str = "auto",
) -> Plan:
    """Count what `build` would find, and measure its rate and record size on some of the images.

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
    begin = time.perf_counter()
    ready = load_ready(teacher, weights, settings, place, store)
    loaded, identity = ready.teacher, ready.identity
    loading = time.perf_counter() - begin
    if store is not None:
        check_format(store, identity)
    by_key, repeated, left_out = distinct_images(references, workers)
    duplicates = [(again, by_key[key]) for again, key in repeated]
    namespace = find_namespace(store, identity) if store is not None else None
    absent = list(by_key) if namespace is None else missing_keys(namespace, by_key)
    missing, quarantined = _apart(namespace, absent)
    naming = time.perf_counter() - begin - loading

    def flow(keys: list[bytes], add: Callable[[bytes, Arrays], None]) -> Generator[Outcome]:
        return stream(
            loaded,
            identity,
            keys,
            by_key,
            add,
            batch_size=batch_size,
            workers=workers,
            device=place,
        )

    found = probe(missing, by_key, identity, batch_size, flow)
    left_out += [(by_key[key], str(error)) for key, error in found.outcomes if error is not None]
    size, rate = found.record_size, found.rate

    def hours(seconds: float) -> float:
        return (loading + naming + seconds * len(missing)) / 3600

    return Plan(
        namespace=identity.namespace(),
        images=len(references),
        distinct=len(by_key),
        found=len(by_key) - len(absent),
        missing=len(missing),
        quarantined=quarantined,
        duplicates=duplicates,
        left_out=left_out,
        probed=found.stored,
        images_per_second=1 / rate.seconds if rate else None,
        rate_interval=(1 / rate.high, 1 / rate.low) if rate else None,
        bytes_per_record=size,
        bytes=None if size is None else size * len(missing),
        hours=hours(rate.seconds) if rate else None,
        hours_interval=(hours(rate.low), hours(rate.high)) if rate else None,
        loading_seconds=loading,
        naming_seconds=naming,
        free=_free(store),
    )


def _apart(namespace: Namespace | None, absent: list[bytes]) -> tuple[list[bytes], int]:
    """Return what is to be encoded, and how many images an earlier build left out for good."""
    known = {} if namespace is None else known_reasons(namespace)
    missing = [key for key in absent if key not in known]
    return missing, len(absent) - len(missing)


def _free(store: str | Path | None) -> int | None:
    """Bytes free on the disk of a store's folder, or of the nearest folder above that is there."""
    if store is None or "://" in str(store):
        return None
    place = Path(store).expanduser().absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
