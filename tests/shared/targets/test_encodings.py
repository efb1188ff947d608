"""From features to stored targets and back: `matrix` in two precisions, `factors` on any grid."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.imaging.geometry import Box, content_box, coverage
from shared.imaging.grid import Grid, interpolation_matrix
from shared.targets import TargetStore, TargetWriter
from shared.targets.numbers.encodings import encode_targets
from shared.targets.numbers.factors import InaccurateFactors, factorise
from shared.targets.numbers.similarity import cosine_similarity_triangle, square_from_triangle
from shared.targets.numbers.triangle import patches_of_triangle, triangle_length
from tests.fixtures.present import present
from tests.fixtures.targets import identity, key

pytestmark = pytest.mark.unit


def features(batch, grid, width=24, rank=10, seed=0):
    """Features of natural shape: smooth, of low rank plus noise, a few patches with large norms."""
    random = torch.Generator().manual_seed(seed)
    size = grid[0] * grid[1]
    tokens = torch.randn(batch, size, rank, generator=random) @ torch.randn(
        rank, width, generator=random
    )
    tokens += 0.2 * torch.randn(batch, size, width, generator=random)
    tokens[:, 3] *= 50
    return tokens, torch.rand(batch, size, generator=random) / size


def independent_similarity(tokens, native, grid):
    """Eq.

    2 and 3 written out with torch's own interpolation, in float64 (only where the grid grows).
    """
    batch, _, width = tokens.shape
    square = tokens.double().reshape(batch, *native, width).permute(0, 3, 1, 2)
    square = torch.nn.functional.interpolate(
        square, size=grid, mode="bilinear", align_corners=False
    )
    flat = square.flatten(2).transpose(1, 2)
    return torch.nn.functional.cosine_similarity(flat[:, :, None], flat[:, None, :], dim=-1)


def write(root, tokens, attention, boxes, native, **changes):
    fields = identity(**changes)
    with TargetWriter(root, fields, segment_records=3) as writer:
        for number, record in enumerate(encode_targets(tokens, attention, boxes, native, fields)):
            writer.add(key(number), record)


@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_triangle_is_the_upper_half_of_the_cosine_matrix(patches, width, seed):
    tokens = torch.randn(
        2, patches, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    triangle = cosine_similarity_triangle(tokens)
    assert triangle.shape == (2, triangle_length(patches))
    assert patches_of_triangle(triangle.shape[1]) == patches
    square = square_from_triangle(triangle).numpy()
    wanted = independent_similarity(tokens, (patches, 1), (patches, 1)).numpy()
    np.testing.assert_allclose(square, wanted, atol=1e-12)
    rows, columns = np.triu_indices(patches, 1)
    np.testing.assert_array_equal(triangle.numpy(), square[:, rows, columns])


def test_a_zero_patch_is_unlike_all_others():
    tokens = torch.ones(1, 3, 2)
    tokens[0, 1] = 0
    assert cosine_similarity_triangle(tokens).tolist() == [[0.0, pytest.approx(1.0), 0.0]]


def test_a_length_that_is_no_triangle():
    with pytest.raises(ValueError, match="not the length"):
        patches_of_triangle(4)


@pytest.mark.parametrize(("precision", "bound"), [("f16", 5e-4), ("u8", 1 / 255 + 5e-4)])
def test_matrix_keeps_the_interpolated_similarity(tmp_path, precision, bound):
    native, grid = (4, 4), (6, 8)
    tokens, attention = features(5, native)
    boxes = [content_box(100, height, "pad") for height in (100, 60, 30, 90, 10)]
    write(tmp_path, tokens, attention, boxes, native, grid=grid, precision=precision)
    batch = TargetStore.open(tmp_path, grid=grid).batch([key(number) for number in range(5)])
    wanted = independent_similarity(tokens, native, grid).numpy()
    rows, columns = np.triu_indices(48, 1)
    assert np.abs(batch.similarity - wanted[:, rows, columns]).max() <= bound
    operator = interpolation_matrix(Grid(*native), Grid(*grid))
    np.testing.assert_allclose(present(batch.attention), attention.numpy() @ operator.T, atol=1e-7)
    np.testing.assert_array_equal(batch.coverage, [coverage(box, Grid(*grid)) for box in boxes])


@pytest.mark.parametrize("precision", ["f16", "u8"])
@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (6, 5), (3, 2)])
def test_factors_serve_any_grid_within_their_error(tmp_path, precision, grid):
    native = (4, 4)
    tokens, attention = features(4, native, seed=3)
    boxes = [content_box(100, height, "pad") for height in (100, 60, 30, 90)]
    changes = {"grid": native, "encoding": "factors", "precision": precision, "tolerance": 0.02}
    write(tmp_path, tokens, attention, boxes, native, **changes)
    store = TargetStore.open(tmp_path, grid=grid)
    batch = store.batch([key(number) for number in (2, 0, 3, 1)])
    order = torch.tensor([2, 0, 3, 1])
    operator = torch.from_numpy(interpolation_matrix(Grid(*native), Grid(*grid)))
    wanted = cosine_similarity_triangle(operator @ tokens[order]).numpy()
    assert (
        np.abs(batch.similarity - wanted).max() <= 0.03
    )  # 0.02 is kept at the native grid and at 24x24
    weights = (attention[order] @ operator.T).numpy()
    np.testing.assert_allclose(present(batch.attention), weights, atol=1e-7)
    np.testing.assert_array_equal(
        batch.coverage, [coverage(boxes[number], Grid(*grid)) for number in order]
    )
    stored = store.arrays([key(number) for number in range(4)])
    error = stored["error"].astype(float)
    assert (error <= 0.02).all()
    assert (error > 0).all()


@pytest.mark.parametrize("width", [10, 40])  # narrower and wider than the number of patches
def test_factors_at_full_rank_are_exact_and_the_rank_is_needed(width):
    tokens, _ = features(1, (4, 4), width=width)
    tight = factorise(tokens[0], (4, 4), 6e-4, "f16")
    loose = factorise(tokens[0], (4, 4), 0.1, "f16")
    assert loose.values.shape[1] < tight.values.shape[1] <= min(16, width)
    assert tight.error.max() <= 6e-4
    fewer = (loose.values[:, :-1].astype(np.float64) * loose.scale[:, None])[None]
    wanted = cosine_similarity_triangle(tokens)
    assert (cosine_similarity_triangle(torch.from_numpy(fewer)) - wanted).abs().max() > 0.1


@pytest.mark.parametrize("tolerance", [0.03, 0.06, 0.1, 0.15, 0.2, 0.3])
def test_no_component_is_kept_that_the_tolerance_does_not_need(tolerance):
    tokens, _ = features(1, (6, 6), width=40)
    found = factorise(tokens[0], (6, 6), tolerance, "f16")
    fewer = (found.values[:, :-1].astype(np.float64) * found.scale[:, None])[None]
    wanted = cosine_similarity_triangle(tokens)
    off = (cosine_similarity_triangle(torch.from_numpy(fewer)) - wanted).abs().max()
    assert found.error.max() <= tolerance < off


def test_a_tolerance_that_cannot_be_kept_says_so():
    tokens, _ = features(1, (4, 4))
    with pytest.raises(InaccurateFactors, match="--precision f16"):
        factorise(tokens[0], (4, 4), 1e-4, "u8")
    with pytest.raises(InaccurateFactors, match="a larger --tolerance") as caught:
        factorise(tokens[0], (4, 4), 1e-6, "f16")
    assert "--precision" not in str(caught.value)


def test_reading_factors_needs_no_torch(tmp_path):
    """Torch would be most of the memory of a process that reads targets."""
    tokens, attention = features(2, (4, 4))
    changes = {"grid": (4, 4), "encoding": "factors", "tolerance": 0.02}
    write(tmp_path / "store", tokens, attention, [Box(0, 0, 1, 1)] * 2, (4, 4), **changes)
    code = (
        "import sys; from shared.targets import TargetStore; store = TargetStore.open(sys.argv[1], "
        "grid=(6, 6)); "
        "assert store[next(store.keys())].similarity.shape == (630,); assert 'torch' not in "
        "sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "store"], check=True, cwd=Path(__file__).parents[3]
    )


def test_plain_zarr_reads_u8_as_floats(tmp_path):
    tokens, attention = features(3, (3, 4))
    write(tmp_path, tokens, attention, [Box(0, 0, 1, 1)] * 3, (3, 4), precision="u8")
    store = TargetStore.open(tmp_path)
    (segment,) = store.namespace.segments()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Numcodecs codecs are not in the Zarr version 3 specification"
        )
        group = zarr.open_group(tmp_path / store.namespace.name / "segments" / segment, mode="r")
        similarity = group["similarity"][:]
    assert similarity.dtype == np.float16
    np.testing.assert_array_equal(
        similarity, store.batch([key(number) for number in range(3)]).similarity
    )


def test_plain_zarr_reads_factors(tmp_path):
    tokens, attention = features(3, (3, 4))
    changes = {"encoding": "factors", "precision": "u8", "tolerance": 0.02}
    write(tmp_path, tokens, attention, [Box(0, 0, 1, 1)] * 3, (3, 4), **changes)
    store = TargetStore.open(tmp_path)
    (segment,) = store.namespace.segments()
    stored = store.arrays([key(number) for number in range(3)])
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Numcodecs codecs are not in the Zarr version 3 specification"
        )
        group = zarr.open_group(tmp_path / store.namespace.name / "segments" / segment, mode="r")
        for name, values in stored.items():
            read = group[name][:]
            assert read.dtype == values.dtype
            np.testing.assert_array_equal(read, values)


def test_features_that_are_not_finite_are_refused():
    tokens, attention = features(1, (3, 4))
    tokens[0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        encode_targets(tokens, attention, [Box(0, 0, 1, 1)], (3, 4), identity())
