"""Building a store: what is asked for, what is missing, who encodes it, and what came of it.

The store is the only state: an interrupted build is continued by the same command, which computes
what is missing. Under `torchrun` every rank names a share of the files, takes its block of the
missing keys and writes its own segments; the ranks meet once the files are named and at the end.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.console import track, warn
from shared.errors import UserError
from shared.files import refused_as
from shared.imaging.contained import AnyReference
from shared.processes import choose_device
from shared.targets import DamagedSegment, TargetWriter
from shared.targets.catalogue import publish_catalogue
from shared.targets.identity import Identity
from shared.targets.namespace import (
    Namespace,
    create_namespace,
    find_namespace,
    quarantine,
    quarantined,
    release,
)
from shared.targets.segment.writer import NotFinite
from shared.vocabulary import Engine
from teacher_cache.distinct import distinct_images
from teacher_cache.missing import missing_keys
from teacher_cache.on_ray import Work, cluster, stream_on_ray
from teacher_cache.preparing import Ready, load_ready
from teacher_cache.ranks import Ranks, stop_on_termination
from teacher_cache.settings import Settings
from teacher_cache.stream import Failure, LeftOut, Outcome, named, stream
from teacher_cache.texts.prompts import write_texts

Reason = tuple[bytes, str]  # the key of an image without a target, and why


class BuildResult(NamedTuple):
    """What a build did: `images` asked for, of them `distinct`.

    Of those `found` before, now `encoded`, or `failed`.

    `left_out` names the failed ones with the reason. Under `torchrun` the counts are those of all
    ranks, the names only this rank's. `elsewhere` counts what ranks that do not meet this one
    have still to encode; `prompts` the prompts that were embedded. `seconds` is the whole time;
    `encoding_seconds` that part in which images were encoded and written, without naming them and
    loading the teacher.
    """

    namespace: str
    images: int
    distinct: int
    found: int
    encoded: int
    failed: int
    left_out: LeftOut
    seconds: float
    encoding_seconds: float
    elsewhere: int = 0
    prompts: int = 0

    @property
    def images_per_second(self) -> float | None:
        """Rate of encoding and writing, which is what a longer build would go at.

        None where nothing was encoded.
        """
        return self.encoded / self.encoding_seconds if self.encoded else None

    def as_json(self) -> dict[str, object]:
        """Plain values for `--json`.

        Images that were left out are named by the path the user gave.
        """
        rate = self.images_per_second
        return {**self._asdict(), "left_out": named(self.left_out), "images_per_second": rate}


def build(
    teacher: str,
    images: Iterable[AnyReference],
    store: str | Path,
    *,
    weights: str | None = None,
    settings: Settings = Settings(),
    batch_size: int = 8,
    workers: int = 2,
    device: str = "auto",
    segment_records: int = 256,
    engine: Engine = "ranks",
    prompts: Sequence[str] = (),
) -> BuildResult:
    """Encode every image that the store lacks, and write its target.

    An image that cannot be read, or for which `factors` cannot keep the tolerance, is left out and
    quarantined.

    Parameters
    ----------
    teacher, weights
        As in `load_teacher`.
    images
        References such as `find_images` returns.
    store
        The store's folder, or `s3://bucket/prefix`; made if absent.
    workers
        Threads that read images.
    segment_records
        Images per segment: what a kill can lose at most, per process.
    engine
        `ranks`: this process, or the ranks of `torchrun`; `ray`: actors of a Ray cluster.
    prompts
        Texts whose embeddings the store gets too, by the text tower of a query.

    Raises
    ------
    UserError
        Missing weights, a store that cannot be written, a projection or a text tower that the
        teacher does not have.
    """
    begin = time.perf_counter()
    ranks = Ranks.of_environment()
    place = choose_device("cpu" if engine == "ray" else device)
    references = list(images)
    ready = load_ready(teacher, weights, settings, place, store)
    identity = ready.identity
    check_format(store, identity)
    namespace = create_namespace(store, identity, _provenance(ready))
    loaded = ready.into(namespace)
    embedded = _embed(ready, prompts, store) if ranks.speaks else 0
    del ready  # with the text tower
    if ranks.meets and ranks.world > 1:
        count = ranks.world - 1
        warn(
            f"rank {ranks.rank}: waiting for {count} other rank{'s' * (count > 1)} (RANK, "
            "WORLD_SIZE and MASTER_ADDR of the environment; unset them for one process)"
        )
    with ranks.meeting(), cluster() if engine == "ray" else nullcontext():
        by_key, _, left_out = distinct_images(references, workers, ranks)
        unopened = len(left_out)  # the same on every rank
        missing = _missing_for_all(ranks, namespace, by_key)
        mine = ranks.share(by_key, missing)
        known = known_reasons(namespace)
        _say_share(ranks, len(mine), len(missing))
        encoding = time.perf_counter()
        title = "encoding" if ranks.world == 1 else f"encoding (rank {ranks.rank} of {ranks.world})"
        with stop_on_termination():
            if engine == "ray":
                work = Work(
                    teacher, weights, settings, identity, store, batch_size, workers, device
                )
                flow = stream_on_ray(work, [(key, by_key[key]) for key in mine], segment_records)
                failures, not_finite = _kept(
                    track(flow, len(mine), title, "images"), namespace, known
                )
            else:
                with TargetWriter(store, identity, segment_records=segment_records) as writer:
                    here = stream(
                        loaded,
                        identity,
                        mine,
                        by_key,
                        writer.add,
                        batch_size=batch_size,
                        workers=workers,
                        device=place,
                    )
                    with closing(here):
                        failures, not_finite = _kept(
                            track(here, len(mine), title, "images"), namespace, known
                        )
        left_out += [(by_key[key], reason) for key, reason in failures]
        _check_some_are_finite(not_finite, len(mine), len(by_key), identity)
        for key, reason in not_finite:
            if known.get(key) != reason:
                quarantine(namespace, key, reason)
        failed = len(failures)
        encoded, failed = (
            int(total) for total in ranks.sum(np.array([len(mine) - failed, failed]))
        )
        end = time.perf_counter()
        elsewhere = _elsewhere(ranks, namespace, set(missing).difference(mine))
        _release(namespace, known, by_key)
        if ranks.speaks:
            with (
                suppress(DamagedSegment),  # is told already
                refused_as(f"cannot write to the store {namespace.storage.location}"),
            ):
                publish_catalogue(namespace)
    return BuildResult(
        namespace=identity.namespace(),
        images=len(references),
        distinct=len(by_key),
        found=len(by_key) - len(missing),
        encoded=encoded,
        failed=failed + unopened,
        left_out=left_out,
        seconds=end - begin,
        encoding_seconds=end - encoding,
        elsewhere=elsewhere,
        prompts=embedded,
    )


def check_format(store: str | Path, identity: Identity) -> None:
    """Refuse to encode again what a store holds in an older format.

    Raises
    ------
    UserError
        It does, and was not upgraded; or the store cannot be reached.
    """
    older = identity.model_copy(update={"format": 1})
    if identity.encoding == "patches" or find_namespace(store, identity) is not None:
        return
    if find_namespace(store, older) is not None:
        raise UserError(
            f"{store} holds these targets in format 1 ({older.namespace()}): `cache upgrade "
            f"--store {store}` takes them over in minutes, without the teacher; then run the same "
            "build again"
        )


def _kept(
    outcomes: Iterable[Outcome], namespace: Namespace, known: Mapping[bytes, str]
) -> tuple[list[Reason], list[Reason]]:
    """Run a stream to its end, and quarantine what fails for a reason that lies in the image.

    Values that are not finite may lie in the weights: they wait for the whole.

    Returns
    -------
    Every failure, and those of them that wait.
    """
    failures: list[Reason] = []
    not_finite: list[Reason] = []
    for key, error in outcomes:
        if error is None:
            continue
        failures.append((key, _reason(error)))
        if isinstance(error, NotFinite):
            not_finite.append((key, str(error)))
        elif not isinstance(error, OSError) and known.get(key) != str(error):
            quarantine(namespace, key, str(error))
    return failures, not_finite


def _check_some_are_finite(
    not_finite: list[Reason], tried: int, distinct: int, identity: Identity
) -> None:
    """Tell broken weights from an image that overflows.

    Raises
    ------
    UserError
        All images that were asked for were tried, and the teacher is finite for none.
    """
    if not_finite and len(not_finite) == tried == distinct:
        raise UserError(
            f"the teacher's values are not finite in {identity.dtype} for any of {tried} images: "
            "use a wider --dtype, or check the weights"
        )


def _say_share(ranks: Ranks, share: int, missing: int) -> None:
    """Say that this process does a part only: RANK and WORLD_SIZE may be left from another job."""
    if ranks.world > 1:
        met = "" if ranks.meets else " (RANK and WORLD_SIZE of the environment; unset them for all)"
        warn(f"rank {ranks.rank} of {ranks.world}: its share is {share} of {missing}{met}")


def _missing_for_all(
    ranks: Ranks, namespace: Namespace, by_key: Mapping[bytes, AnyReference]
) -> list[bytes]:
    """Return the keys to encode, the same on all ranks that meet.

    A rank that looks a moment later may see a segment more, and cut the list elsewhere.
    """
    absent = set(missing_keys(namespace, by_key))
    lacks = ranks.of_first(np.fromiter((key in absent for key in by_key), np.uint8, len(by_key)))
    return [key for key, lacking in zip(by_key, lacks, strict=True) if lacking]


def _elsewhere(ranks: Ranks, namespace: Namespace, others: set[bytes]) -> int:
    """Count what ranks that do not meet this one have still to encode of their own share."""
    if ranks.world == 1 or ranks.meets or not others:
        return 0
    return len(missing_keys(namespace, others))


def _release(
    namespace: Namespace, known: Mapping[bytes, str], by_key: Mapping[bytes, AnyReference]
) -> None:
    """Remove the quarantine records of images that have a target by now."""
    asked = [key for key in known if key in by_key]
    if not asked:
        return
    absent = set(missing_keys(namespace, asked))
    if len(absent) == len(asked):
        return
    with refused_as(f"cannot write to the store {namespace.storage.location}"):
        release(namespace, lambda keys: [key in by_key and key not in absent for key in keys])


def known_reasons(namespace: Namespace) -> dict[bytes, str]:
    """Why which image is quarantined already, so that no reason is written twice.

    A damaged note of it stops no build.
    """
    try:
        return {record.key: record.reason for record in quarantined(namespace)}
    except UserError as error:
        warn(str(error))
        return {}


def _reason(error: Failure) -> str:
    return (
        f"the file cannot be read: {error.strerror or error}"
        if isinstance(error, OSError)
        else str(error)
    )


def _embed(ready: Ready, prompts: Sequence[str], store: str | Path) -> int:
    """Write the embeddings of prompts that the store lacks; return how many were new."""
    if not prompts:
        return 0
    if ready.tower is None:
        raise UserError("prompts are embedded for a query alone: add --query, or use `cache text`")
    return write_texts(ready.tower, prompts, store).new


def _provenance(ready: Ready) -> dict[str, object]:
    packages = ("medalign", "torch", "timm", "open_clip_torch", "zarr", "numcodecs", "pillow")
    return {
        "licence": ready.teacher.licence,
        "software": {name: version(name) for name in packages},
        **({} if ready.query is None else {"query": ready.query}),
    }
