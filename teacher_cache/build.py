"""Building a store: images are read, encoded and written side by side, each in its own thread.

    file ──► reader threads ──► the teacher (this thread) ──► writer thread ──► segment
             open, square,       one pass a batch             interpolate, cosine,
             normalise                                        compress, publish

The store is the only state: an interrupted build is continued by the same command, which computes what is missing.
Under `torchrun` every rank takes the missing keys it owns and writes its own segments; no rank talks to another.
"""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from shared.console import UserError, track
from shared.imaging.geometry import Box, Geometry, content_box, square
from shared.imaging.grid import Grid
from shared.imaging.images import ImageReference, UnreadableImage, content_key, open_image
from shared.targets import Identity, Preprocessing, TargetStore, TargetWriter
from shared.targets.encodings import encode_targets
from shared.targets.namespace import create_namespace, quarantine, quarantined
from teacher_cache.encoder import Encoded, encode
from teacher_cache.teachers import Teacher, load_teacher

T = TypeVar("T")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Settings(NamedTuple):
    """What decides the numbers in the store, beside the teacher: part of the identity."""

    geometry: Geometry = "pad"
    grid: Grid = Grid(24, 24)
    encoding: Literal["matrix", "factors"] = "matrix"
    precision: Literal["f16", "u8"] = "f16"
    features: Literal["block", "projected"] = "block"
    tolerance: float = 0.01
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"


class BuildResult(NamedTuple):
    """What a build did: `images` asked for, of them `distinct`; of those `found` before, `encoded`, `unreadable`.

    Under `torchrun` the last two count this rank's share.
    """

    namespace: str
    images: int
    distinct: int
    found: int
    encoded: int
    unreadable: list[tuple[ImageReference, str]]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--json`; images that could not be read are named by the path the user gave."""
        unreadable = [{"image": str(reference), "reason": reason} for reference, reason in self.unreadable]
        rate = self.encoded / self.seconds if self.encoded else None
        return {**self._asdict(), "unreadable": unreadable, "images_per_second": rate}


def identity_of(teacher: Teacher, settings: Settings) -> Identity:
    """Return the identity of targets made by `teacher` under `settings`."""
    factors = settings.encoding == "factors"
    return Identity(
        teacher=teacher.name,
        architecture=teacher.architecture,
        weights=teacher.weights,
        features=settings.features,
        preprocessing=teacher.preprocessing,
        geometry=settings.geometry,
        dtype=settings.dtype,
        encoding=settings.encoding,
        grid=teacher.grid if factors else settings.grid,
        precision=settings.precision,
        tolerance=settings.tolerance if factors else None,
    )


def choose_device(device: str) -> str:
    """Turn `auto` into `cuda` where there is a GPU, else `cpu`; raise where `cuda` is asked for and absent."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UserError("--device cuda: no GPU is visible to torch; use --device cpu")
    return ("cuda" if available else "cpu") if device == "auto" else device


def build(
    teacher: str,
    images: Iterable[ImageReference],
    store: str | Path,
    *,
    weights: str | None = None,
    settings: Settings = Settings(),
    batch_size: int = 8,
    workers: int = 2,
    device: str = "auto",
    segment_records: int = 256,
) -> BuildResult:
    """Encode every image that the store lacks, and write its target.

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

    Raises
    ------
    UserError
        Missing weights, a store that cannot be written, a projection that the teacher does not have.
    """
    begin = time.perf_counter()
    place = choose_device(device)
    references = list(images)
    loaded = load_teacher(teacher, weights, settings.grid)
    if settings.features == "projected" and loaded.project is None:
        raise UserError(f"teacher {teacher} has no projection: use --features block")
    loaded.model.to(device=place, dtype=DTYPES[settings.dtype])
    identity = identity_of(loaded, settings)
    namespace = create_namespace(store, identity, _provenance(loaded))
    by_key = distinct_images(references, workers)
    missing = TargetStore.open(store, identity=identity).missing(by_key)
    mine = owned(missing)
    unreadable: list[tuple[ImageReference, str]] = []
    known = {record.key: record.reason for record in quarantined(namespace)}

    with TargetWriter(store, identity, _provenance(loaded), segment_records) as writer:
        batches = _read(mine, by_key, loaded.preprocessing, settings.geometry, batch_size, workers)
        results = _encoded(loaded, identity, settings, batches, place)
        for key, record in track(results, len(mine), "encoding", "images"):
            if isinstance(record, UnreadableImage):
                unreadable.append((by_key[key], str(record)))
                if known.get(key) != str(record):
                    quarantine(namespace, key, str(record))
            else:
                writer.add(key, record)
    encoded = len(mine) - len(unreadable)
    found = len(by_key) - len(missing)
    seconds = time.perf_counter() - begin
    return BuildResult(identity.namespace(), len(references), len(by_key), found, encoded, unreadable, seconds)


def distinct_images(references: list[ImageReference], workers: int) -> dict[bytes, ImageReference]:
    """Return the first reference of each content key, in order; raises UserError for a file that cannot be opened."""

    def key_of(reference: ImageReference) -> bytes:
        try:
            return content_key(*reference)
        except OSError as error:
            raise UserError(f"{reference} cannot be opened: {error.strerror or error}") from error

    by_key: dict[bytes, ImageReference] = {}
    with ThreadPoolExecutor(workers) as pool:
        for key, reference in zip(pool.map(key_of, references), references, strict=True):
            by_key.setdefault(key, reference)
    return by_key


def owned(keys: list[bytes]) -> list[bytes]:
    """Return the keys that are this rank's under `torchrun` (RANK, WORLD_SIZE); all of them in a single process.

    Ownership follows from the key alone, so ranks that see the store at different moments still agree.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return [key for key in keys if int.from_bytes(key[:8], "big") % world == rank]


class _Batch(NamedTuple):
    """Readable images of one batch, and those that were not."""

    keys: list[bytes]
    pixels: Tensor | None  # (B, 3, size, size)
    boxes: list[Box]
    unreadable: list[tuple[bytes, UnreadableImage]]


def prepare(reference: ImageReference, preprocessing: Preprocessing, geometry: Geometry) -> tuple[Tensor, Box]:
    """Open an image and return the teacher's pixels (3, size, size) float32, and where in the square it lies.

    The padding is the teacher's mean colour, which is the student's: both are trained on CLIP's (or ImageNet's) mean.
    """
    image = open_image(reference)
    mean = preprocessing.mean
    fill = (int(255 * mean[0]), int(255 * mean[1]), int(255 * mean[2]))
    cut = square(image, preprocessing.size, geometry, fill)
    levels = np.asarray(cut, dtype=np.float32) / 255
    normalised = (levels - np.array(mean, np.float32)) / np.array(preprocessing.std, np.float32)
    pixels = torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))
    return pixels, content_box(image.width, image.height, geometry)


def _read(
    keys: list[bytes],
    by_key: Mapping[bytes, ImageReference],
    preprocessing: Preprocessing,
    geometry: Geometry,
    batch_size: int,
    workers: int,
) -> Iterator[_Batch]:
    """Read batches ahead in threads (Pillow and zlib release the interpreter's lock)."""

    def attempt(key: bytes) -> tuple[Tensor, Box] | UnreadableImage:
        try:
            return prepare(by_key[key], preprocessing, geometry)
        except UnreadableImage as error:
            return error
        except OSError as error:  # the file was readable when its key was computed: the disk, not the image
            raise UserError(f"{by_key[key]} cannot be read: {error.strerror or error}") from error

    def collect(chunk: list[bytes]) -> _Batch:
        results = list(zip(chunk, pool.map(attempt, chunk), strict=True))
        good = [(key, *result) for key, result in results if not isinstance(result, UnreadableImage)]
        bad = [(key, result) for key, result in results if isinstance(result, UnreadableImage)]
        pixels = torch.stack([item[1] for item in good]) if good else None
        return _Batch([item[0] for item in good], pixels, [item[2] for item in good], bad)

    chunks = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    with ThreadPoolExecutor(workers) as pool, ThreadPoolExecutor(1) as collector:
        yield from _ahead((collector.submit(collect, chunk) for chunk in chunks), 2)


def _encoded(
    teacher: Teacher, identity: Identity, settings: Settings, batches: Iterable[_Batch], device: str
) -> Iterator[tuple[bytes, Any]]:
    """Run the teacher; turn its output into records in a second thread. Yields (key, record or UnreadableImage)."""

    def records(batch: _Batch, encoded: Encoded) -> list[tuple[bytes, Any]]:
        made = encode_targets(encoded.tokens, encoded.attention, batch.boxes, teacher.grid, identity)
        return list(zip(batch.keys, made, strict=True))

    def jobs() -> Iterator[Future[list[tuple[bytes, Any]]]]:
        for batch in batches:
            if batch.pixels is not None:
                pixels = batch.pixels.to(device=device, dtype=DTYPES[settings.dtype], non_blocking=True)
                yield pool.submit(records, batch, encode(teacher, pixels, settings.features))
            if batch.unreadable:
                yield pool.submit(list, batch.unreadable)

    with ThreadPoolExecutor(1) as pool:
        for pairs in _ahead(jobs(), 1):
            yield from pairs


def _ahead(futures: Iterator[Future[T]], depth: int) -> Iterator[T]:
    """Yield results in order while `depth` more are under way; what is left is cancelled if the consumer stops."""
    waiting: deque[Future[T]] = deque()
    try:
        for future in futures:
            waiting.append(future)
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _provenance(teacher: Teacher) -> dict[str, Any]:
    packages = ("medalign", "torch", "timm", "open_clip_torch", "zarr", "numcodecs", "pillow")
    return {"licence": teacher.licence, "software": {name: version(name) for name in packages}}
