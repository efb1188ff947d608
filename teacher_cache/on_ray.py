"""A build on a Ray cluster: actors hold the teacher, Ray Data hands them blocks of images.

A block is what becomes one segment, and a segment is the unit of commit. Ray gives the block of a
dead actor or node to another, which first asks the store whether the block was published; so
nothing is encoded twice that is there, and nothing half-written is taken for whole.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shared.errors import UserError
from shared.imaging.contained import AnyReference
from shared.processes import choose_device
from shared.targets import TargetWriter
from shared.targets.identity import Identity
from teacher_cache.missing import missing_keys
from teacher_cache.preparing import load_ready
from teacher_cache.settings import Settings
from teacher_cache.stream import Outcome, stream

RETRIES = 3  # of a block whose actor died: more would run an image for ever that kills each


class Work(NamedTuple):
    """What an actor needs to encode blocks of one build."""

    teacher: str
    weights: str | None
    settings: Settings
    identity: Identity
    store: str | Path
    batch_size: int
    workers: int
    device: str


class _Encoder:
    """An actor: it loads the teacher once and turns each block into a segment."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._device = choose_device(work.device)
        ready = load_ready(work.teacher, work.weights, work.settings, self._device, work.store)
        self._teacher = ready.teacher  # which reads in the basis of the store
        if ready.identity != work.identity:
            raise UserError(
                f"a node of the Ray cluster has other weights or settings of {work.teacher} "
                f"({ready.identity.namespace()}) than where the build began "
                f"({work.identity.namespace()}): give all nodes the same --weights and versions"
            )

    def __call__(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """Encode what the store lacks of a block; its outcomes are told once it is published."""
        import numpy as np

        work = self._work
        by_key: dict[bytes, AnyReference] = dict(cell.holds for cell in block["image"])
        outcomes: list[Outcome] = []
        with TargetWriter(work.store, work.identity, segment_records=len(by_key)) as writer:
            absent = missing_keys(writer.namespace, by_key)
            flow = stream(
                self._teacher,
                work.identity,
                absent,
                by_key,
                writer.add,
                batch_size=work.batch_size,
                workers=work.workers,
                device=self._device,
            )
            with closing(flow):
                outcomes += flow
        outcomes += [(key, None) for key in by_key.keys() - set(absent)]
        column = np.empty(len(outcomes), dtype=object)
        column[:] = [_Cell(outcome) for outcome in outcomes]
        return {"outcome": column}


@dataclass(frozen=True, slots=True)
class _Cell:
    """An image to encode, or the outcome of one: a table takes a tuple for a row of numbers."""

    holds: tuple[bytes, AnyReference] | Outcome


@contextmanager
def cluster() -> Iterator[None]:
    """Join the Ray cluster of RAY_ADDRESS, or start one on this machine; leave it afterwards.

    Raises
    ------
    UserError
        Ray is not installed, no cluster is at that address, or the ranks of `torchrun` are set.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "--engine ray shares the work itself: unset RANK and WORLD_SIZE, or leave --engine out"
        )
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no report to anyone
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs the extra `ray`: pip install 'medalign[ray]'") from None
    joined = ray.is_initialized()
    try:
        if not joined:
            ray.init(logging_level="ERROR", log_to_driver=False)
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}: start it with "
            f"`ray start --head`, or unset RAY_ADDRESS to use this machine ({error})"
        ) from error
    with _output_to_stderr():  # Ray's core tells of retries on what is the command's own output
        try:
            yield
        finally:
            if not joined:
                ray.shutdown()


@contextmanager
def _output_to_stderr() -> Iterator[None]:
    """Turn the process's standard output, also of libraries that are not Python, to its errors."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(own, 1)
        os.close(own)


def stream_on_ray(
    work: Work, images: Sequence[tuple[bytes, AnyReference]], segment_records: int
) -> Iterator[Outcome]:
    """Encode and store images on a cluster that was joined, and yield an outcome for each.

    Raises
    ------
    UserError
        What an actor raised; or Ray gave up.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.exceptions import RayError

    if not images:
        return
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # its plans are not the user's
    context = DataContext.get_current()
    context.enable_progress_bars = False  # `cache` has its own
    context.enable_rich_progress_bars = False
    context.enable_fallback_to_arrow_object_ext_type = True  # a cell holds an object, unasked
    total = ray.cluster_resources()
    on_gpu = work.device != "cpu" and total.get("GPU", 0) >= 1
    places = max(1, int(total.get("GPU" if on_gpu else "CPU", 1)))
    count = min(len(images), max(-(-len(images) // segment_records), places))
    resources = {"num_gpus": 1} if on_gpu else {"num_cpus": 1}
    blocks = ray.data.from_items(
        [{"image": _Cell(image)} for image in images], override_num_blocks=count
    )
    with warnings.catch_warnings():
        # The named parameters that shall take their place do not know the last two (Ray 2.60).
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        dataset = blocks.map_batches(
            _Encoder,
            fn_constructor_args=(work,),
            batch_size=None,
            compute=ActorPoolStrategy(min_size=1, max_size=min(places, count)),
            **resources,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
    try:
        for row in dataset.iter_rows():
            yield row["outcome"].holds
    except RayError as error:
        raise UserError(_said(error)) from error


def _said(error: BaseException) -> str:
    """Return what an actor said to the user, or Ray's own first line."""
    one: BaseException | None = error
    while one is not None:
        cause = getattr(one, "cause", None)
        one = cause if isinstance(cause, BaseException) else one.__cause__
        if type(one) is UserError:
            return str(one)
    line = str(error).strip().partition("\n")[0]
    return f"the build on Ray ended: {line}; the same command continues it"
