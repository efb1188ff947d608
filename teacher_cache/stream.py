"""From keys to stored records: images are read, encoded and written side by side.

file ──► reader threads ──► the teacher (this thread) ──► writer thread ──► segment
         open, square,       one pass per batch           interpolate, cosine,
         normalise                                        compress, publish
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from shared.imaging.contained import AnyReference, open_reference
from shared.imaging.geometry import Box, content_box
from shared.imaging.grid import Grid
from shared.imaging.pixels import UnreadableImage
from shared.imaging.squares import ImageReader
from shared.targets import Identity, Preprocessing
from shared.targets.numbers.arrays import Arrays
from shared.targets.numbers.encodings import encode_targets
from shared.targets.numbers.factors import InaccurateFactors
from shared.targets.prefetch import ahead
from shared.targets.segment.writer import NotFinite
from shared.vocabulary import Geometry
from teacher_cache.encoder import Encoded, encode
from teacher_cache.settings import DTYPES
from teacher_cache.teachers.base import Teacher

READ_AHEAD, WRITE_BEHIND = 2, 1  # batches in memory before and after the teacher

# Of the image for good, or (the last) of its file just now.
Failure = UnreadableImage | InaccurateFactors | NotFinite | OSError
Outcome = tuple[bytes, Failure | None]
LeftOut = list[tuple[AnyReference, str]]  # images without a target, and why


def named(left_out: LeftOut) -> list[dict[str, str]]:
    """Plain values for `--json`: an image is named as the user named it."""
    return [{"image": str(reference), "reason": reason} for reference, reason in left_out]


class _Batch(NamedTuple):
    """Readable images of one batch, and those that were not."""

    keys: list[bytes]
    pixels: Tensor | None  # (B, 3, size, size)
    boxes: list[Box]
    unreadable: list[tuple[bytes, Failure]]


def stream(
    teacher: Teacher,
    identity: Identity,
    keys: list[bytes],
    by_key: Mapping[bytes, AnyReference],
    add: Callable[[bytes, Arrays], None],
    *,
    batch_size: int,
    workers: int,
    device: str,
) -> Generator[Outcome]:
    """Encode the images of `keys` in order and hand the arrays of each to `add`.

    `add` is called in one other thread.

    Close the iterator before anything else touches what `add` fills: closing waits for that thread.

    Yields
    ------
    tuple
        The key and None once `add` has its arrays, or the key and why its image has none: it
        cannot be read, the teacher's values for it are not finite, or `factors` cannot keep the
        tolerance for it.

    Raises
    ------
    UserError
        What `add` raises.
    """
    dtype = DTYPES[identity.dtype]

    def jobs(
        writer: ThreadPoolExecutor, batches: Iterable[_Batch]
    ) -> Iterator[Future[list[Outcome]]]:
        for batch in batches:
            if batch.pixels is not None:
                pixels = batch.pixels.to(device=device, dtype=dtype, non_blocking=True)
                encoded = encode(teacher, pixels, identity.features)
                yield writer.submit(_write, batch, encoded, teacher.grid, identity, add)
            if batch.unreadable:
                yield writer.submit(list[Outcome], batch.unreadable)

    with ThreadPoolExecutor(1) as writer:
        batches = _read(
            keys, by_key, teacher.preprocessing, identity.geometry, batch_size, workers, device
        )
        for outcomes in ahead(jobs(writer, batches), WRITE_BEHIND):
            yield from outcomes


def _write(
    batch: _Batch,
    encoded: Encoded,
    native: Grid,
    identity: Identity,
    add: Callable[[bytes, Arrays], None],
) -> list[Outcome]:
    """Turn the teacher's output for a batch into targets and add them; one outcome an image."""
    batch, encoded, outcomes = _finite(batch, encoded, identity)
    for part in _parts(len(batch.keys), identity):
        tokens = encoded.tokens[part]
        attention = None if encoded.attention is None else encoded.attention[part]
        try:
            query = None if encoded.query is None else encoded.query[part]
            made = encode_targets(tokens, attention, batch.boxes[part], native, identity, query)
        except InaccurateFactors as error:
            outcomes += [(key, error) for key in batch.keys[part]]
            continue
        for key, arrays in zip(batch.keys[part], made, strict=True):
            try:
                add(key, arrays)
            except NotFinite as error:
                outcomes.append((key, error))
            else:
                outcomes.append((key, None))
    return outcomes


def _finite(
    batch: _Batch, encoded: Encoded, identity: Identity
) -> tuple[_Batch, Encoded, list[Outcome]]:
    """Keep the images for which the teacher's values are finite; the others fail, each alone."""
    sound = torch.isfinite(encoded.tokens).flatten(1).all(1)
    if encoded.attention is not None:
        sound &= torch.isfinite(encoded.attention).flatten(1).all(1)
    if encoded.query is not None:
        sound &= torch.isfinite(encoded.query).flatten(1).all(1)
    rows = [row for row, good in enumerate(sound.tolist()) if good]
    if len(rows) == len(batch.keys):
        return batch, encoded, []
    error = NotFinite(
        f"the teacher's values are not finite in {identity.dtype}: use a wider --dtype"
    )
    outcomes: list[Outcome] = [
        (key, error) for row, key in enumerate(batch.keys) if row not in set(rows)
    ]
    left = batch._replace(
        keys=[batch.keys[row] for row in rows], boxes=[batch.boxes[row] for row in rows]
    )
    attention = None if encoded.attention is None else encoded.attention[rows]
    query = None if encoded.query is None else encoded.query[rows]
    return left, Encoded(encoded.tokens[rows], attention, query), outcomes


def _parts(count: int, identity: Identity) -> list[slice]:
    """Which images of a batch to encode at a time: all, or one where each may fail by itself."""
    return (
        [slice(count)][:count]
        if identity.encoding != "factors"
        else [slice(row, row + 1) for row in range(count)]
    )


def prepare(
    reference: AnyReference, preprocessing: Preprocessing, geometry: Geometry
) -> tuple[Tensor, Box]:
    """Open an image and return the teacher's pixels, and where in the square it lies.

    Pixels are (3, size, size) float32.

    The padding is the teacher's mean colour, which is the student's: both are trained on CLIP's (or
    ImageNet's) mean.
    """
    image = open_reference(reference)
    reader = reader_of(preprocessing, geometry)
    return reader.pixels(image), content_box(image.width, image.height, geometry)


def reader_of(preprocessing: Preprocessing, geometry: Geometry) -> ImageReader:
    """Return the reader that a store's identity describes."""
    return ImageReader(
        preprocessing.size,
        preprocessing.mean,
        preprocessing.std,
        geometry,
        preprocessing.interpolation,
    )


def _read(
    keys: list[bytes],
    by_key: Mapping[bytes, AnyReference],
    preprocessing: Preprocessing,
    geometry: Geometry,
    batch_size: int,
    workers: int,
    device: str,
) -> Iterator[_Batch]:
    """Read batches ahead in threads (Pillow and zlib release the interpreter's lock)."""

    def attempt(key: bytes) -> tuple[Tensor, Box] | Failure:
        try:
            return prepare(by_key[key], preprocessing, geometry)
        except (UnreadableImage, OSError) as error:
            return error

    def collect(chunk: list[bytes]) -> _Batch:
        return _batch(chunk, list(pool.map(attempt, chunk)), pin=device.startswith("cuda"))

    chunks = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    with ThreadPoolExecutor(workers) as pool, ThreadPoolExecutor(1) as collector:
        yield from ahead((collector.submit(collect, chunk) for chunk in chunks), READ_AHEAD)


def _batch(keys: list[bytes], results: list[tuple[Tensor, Box] | Failure], pin: bool) -> _Batch:
    """Sort readable images from those that were not; `pin` the pixels for the copy to a GPU."""
    good: list[tuple[bytes, Tensor, Box]] = []
    bad: list[tuple[bytes, Failure]] = []
    for key, result in zip(keys, results, strict=True):
        if isinstance(result, tuple):
            good.append((key, *result))
        else:
            bad.append((key, result))
    pixels = torch.stack([pixels for _, pixels, _ in good]) if good else None
    if pixels is not None and pin:
        pixels = pixels.pin_memory()  # so that the copy to the GPU does not wait for its work
    return _Batch([key for key, _, _ in good], pixels, [box for _, _, box in good], bad)
