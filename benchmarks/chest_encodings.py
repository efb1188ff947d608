"""What each encoding costs and changes on chest X-rays: a table of docs/performance-store.md.

    OMP_NUM_THREADS=1 python -m benchmarks.chest_encodings IMAGES 32

A folder of images of one kind, of which so many are taken, evenly spaced by name; `dinov2-small` at
24x24. Bytes are those of the whole store on disk, with keys and manifest. L_vis is that of a
student at the teacher's features plus noise of the same spread, against exact float32 targets.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.real_features import Features
from benchmarks.store_codecs import identity
from shared.imaging.grid import Grid
from shared.imaging.images import parse_reference
from shared.targets import TargetStore, TargetWriter
from shared.targets.numbers.encodings import encode_targets
from shared.targets.numbers.similarity import cosine_similarity_triangle
from shared.vocabulary import Encoding, Precision
from student_train.losses import visual_alignment_loss
from teacher_cache.encoder import encode
from teacher_cache.stream import prepare
from teacher_cache.teachers.dinov2_small import dinov2_small

GRID = Grid(24, 24)
KINDS: list[tuple[Encoding, Precision]] = [
    ("matrix", "f16"), ("matrix", "u8"), ("factors", "u8"), ("factors", "f16"), ("patches", "u8"),
]  # fmt: skip


class Measured(NamedTuple):
    """Of one encoding."""

    size: float  # bytes an image
    entry: float  # largest error of a similarity
    losses: list[float]  # of each image, relative error of L_vis


def features_of(folder: Path, count: int) -> Features:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    places = np.linspace(0, len(files) - 1, count).round().astype(int)
    teacher = dinov2_small(GRID)
    prepared = [
        prepare(parse_reference(str(files[place])), teacher.preprocessing, "pad")
        for place in places.tolist()
    ]
    encoded = [encode(teacher, pixels[None]) for pixels, _ in prepared]
    tokens = torch.cat([one.tokens for one in encoded]).clone()
    attention = torch.cat([one.attention for one in encoded if one.attention is not None]).clone()
    return Features(tokens, attention, [box for _, box in prepared], GRID)


def measure(features: Features, encoding: Encoding, precision: Precision, home: Path) -> Measured:
    kind = identity(encoding, precision, GRID)
    keys = [bytes([number % 256, number // 256]) * 16 for number in range(len(features.boxes))]
    place = home / f"{encoding}-{precision}"
    with TargetWriter(place, kind) as writer:
        records = encode_targets(features.tokens, features.attention, features.boxes, GRID, kind)
        for key, record in zip(keys, records, strict=True):
            writer.add(key, record)
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    store = TargetStore.open(place, grid=GRID)
    random = torch.Generator().manual_seed(0)
    entry, losses = 0.0, []
    for key, tokens in zip(keys, features.tokens, strict=True):
        exact = cosine_similarity_triangle(tokens[None])
        stored = torch.from_numpy(store.batch([key]).similarity.astype(np.float32))
        student = tokens[None] + torch.randn(tokens.shape, generator=random) * tokens.std()
        wanted, found = (
            float(visual_alignment_loss(student, target)) for target in (exact, stored)
        )
        losses.append(abs(found - wanted) / wanted)
        entry = max(entry, float((stored - exact).abs().max()))
    return Measured(size / len(keys), entry, losses)


def main() -> None:
    features = features_of(Path(sys.argv[1]), int(sys.argv[2]))
    print(f"{len(features.boxes)} images, dinov2-small at {GRID}")
    print("| encoding | bytes per image | share | largest error of S | L_vis | at most |")
    print("|---|---|---|---|---|---|")
    with TemporaryDirectory() as home:
        for encoding, precision in KINDS:
            size, entry, losses = measure(features, encoding, precision, Path(home))
            share = size / (4 * GRID.size**2)
            print(
                f"| `{encoding}` {precision} | {size:,.0f} | {share:.3f} | {entry:.4f} "
                f"| {np.mean(losses):.1e} | {max(losses):.1e} |"
            )


if __name__ == "__main__":
    main()
