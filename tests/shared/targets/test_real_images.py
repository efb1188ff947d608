"""What the encodings do to L_vis and to its gradient, on real images through the real ViT-S/14.

The bounds are a few times what was measured (docs/performance-store.md); they hold an encoding to
its promise.
"""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from benchmarks.real_features import real_features, real_images
from benchmarks.store_codecs import identity
from shared.imaging.grid import Grid, interpolation_matrix
from shared.targets import TargetStore, TargetWriter
from shared.targets.numbers.encodings import encode_targets
from shared.targets.numbers.similarity import cosine_similarity_triangle
from student_train.losses import visual_alignment_loss
from tests.fixtures.targets import key

pytestmark = pytest.mark.integration

IMAGES = 4
NATIVE = Grid(16, 16)


@pytest.fixture(scope="module")
def features():
    if len(real_images()) < IMAGES:
        pytest.skip("the packages with real images are not installed: make setup")
    return real_features(NATIVE, IMAGES)


class Effect(NamedTuple):
    loss: float  # relative difference
    gradient: float  # 1 - cosine between the gradients
    entry: float  # largest difference of a similarity


def effect(features, similarity, grid):
    """Compare loss and gradient for a student half way to the teacher, against exact targets."""
    tokens = torch.from_numpy(interpolation_matrix(NATIVE, grid)) @ features.tokens
    exact = cosine_similarity_triangle(tokens)
    noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0)) * tokens.std()
    results: list[Any] = []
    for target in (exact, torch.from_numpy(similarity.astype(np.float32))):
        student = (tokens + noise).requires_grad_()
        loss = visual_alignment_loss(student, target)
        loss.backward()
        results.append((loss.item(), student.grad.flatten().double()))
    (loss, gradient), (other, direction) = results
    cosine = torch.nn.functional.cosine_similarity(gradient, direction, dim=0).item()
    entry = np.abs(similarity.astype(np.float32) - exact.numpy()).max()
    return Effect(abs(other - loss) / loss, 1 - cosine, float(entry))


BOUNDS = {
    ("matrix", "f16", (16, 16)): Effect(1e-4, 1e-6, 3e-4),
    ("matrix", "u8", (16, 16)): Effect(2e-3, 1e-4, 1 / 255 + 3e-4),
    ("matrix", "u8", (24, 24)): Effect(2e-3, 1e-4, 1 / 255 + 3e-4),
    ("factors", "u8", (16, 16)): Effect(1.5e-2, 1e-4, 0.0101),
    ("factors", "u8", (24, 24)): Effect(1.5e-2, 1e-4, 0.0101),
    ("factors", "u8", (8, 8)): Effect(1.5e-2, 1e-4, 0.02),
    ("factors", "f16", (24, 24)): Effect(1.5e-2, 1e-4, 0.0101),
    ("patches", "u8", (16, 16)): Effect(5e-3, 1e-5, 0.0025),
    ("patches", "u8", (24, 24)): Effect(5e-3, 1e-5, 0.0025),
}


@pytest.mark.parametrize(("encoding", "precision", "grid"), BOUNDS)
def test_what_an_encoding_does_to_the_visual_loss(
    features, tmp_path, monkeypatch, encoding, precision, grid
):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))
    kind = identity(encoding, precision, Grid(*grid) if encoding == "matrix" else NATIVE)
    with TargetWriter(tmp_path / "store", kind) as writer:
        records = encode_targets(features.tokens, features.attention, features.boxes, NATIVE, kind)
        for number, record in enumerate(records):
            writer.add(key(number), record)
    store = TargetStore.open(tmp_path / "store", grid=grid)
    batch = store.batch([key(number) for number in range(IMAGES)])
    measured = effect(features, batch.similarity, Grid(*grid))
    print(f"{encoding} {precision} {grid}: {measured}")
    bound = BOUNDS[encoding, precision, grid]
    assert measured.entry <= bound.entry
    assert measured.loss <= bound.loss
    assert measured.gradient <= bound.gradient
