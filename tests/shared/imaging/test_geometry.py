"""Squares, coverage and the operator between grids, each against an independent evaluation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shared.errors import UserError
from shared.imaging.geometry import Box, content_box, coverage
from shared.imaging.grid import Grid, interpolation_matrix
from shared.imaging.squares import LARGEST, ImageReader, square
from tests.fixtures.images import colour_picture

pytestmark = pytest.mark.unit
MEAN = (122, 116, 104)  # int(255 * mean) of CLIP
sides = st.integers(1, 90)
grids = st.builds(Grid, st.integers(1, 26), st.integers(1, 26))


def llava_pad(image):
    """What LLaVA's students see before the resize, evaluated with arrays alone."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    side = max(height, width)
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = MEAN
    if width > height:
        canvas[(width - height) // 2 : (width - height) // 2 + height] = pixels
    else:
        canvas[:, (height - width) // 2 : (height - width) // 2 + width] = pixels
    return canvas


@pytest.mark.parametrize(("width", "height"), [(300, 700), (700, 300), (513, 1025)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_bands_give_the_pixels_of_the_whole_padded_square(width, height, interpolation):
    image = colour_picture(width, height)
    for size in (56, 224):
        resampling = getattr(Image.Resampling, interpolation.upper())
        resized = Image.fromarray(llava_pad(image)).resize((size, size), resampling)
        found = square(image, size, "pad", MEAN, interpolation)
        assert np.array_equal(np.asarray(found), np.asarray(resized))


@settings(max_examples=40, deadline=None)
@given(sides, sides)
def test_pad_is_the_students_square(width, height):
    image = colour_picture(width, height)
    side = max(width, height)
    assert np.array_equal(np.asarray(square(image, side, "pad", MEAN)), llava_pad(image))
    resized = Image.fromarray(llava_pad(image)).resize((28, 28), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(square(image, 28, "pad", MEAN)), np.asarray(resized))


def sizes_made(monkeypatch):
    """Return a list that every new canvas puts its size in."""
    sizes, new = [], Image.new

    def recorded(mode, size, *colour):
        sizes.append(size)
        return new(mode, size, *colour)

    monkeypatch.setattr(Image, "new", recorded)
    return sizes


def test_the_padded_square_of_a_large_strip_is_never_made(monkeypatch):
    """Content first: its place is the padded square's to half a pixel, and its pixels nearly so."""
    image = Image.fromarray(
        np.repeat(np.arange(0, 250, 2, dtype=np.uint8), 16)[None].repeat(400, 0)
    )
    image = Image.merge("RGB", [image] * 3)  # 2000 x 400, a smooth ramp
    exact = np.asarray(square(image, 56, "pad", MEAN)).astype(int)
    made = sizes_made(monkeypatch)
    monkeypatch.setattr("shared.imaging.squares.LARGEST", 1_000_000)
    found = np.asarray(square(image, 56, "pad", MEAN)).astype(int)
    assert made == [(56, 56)]
    inside = slice(24, 32)  # rows that show image alone; 11.2 of 56 rows do in part
    assert np.abs(found[inside] - exact[inside]).max() <= 2
    assert np.array_equal(found[:21], exact[:21])
    assert np.array_equal(found[35:], exact[35:])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "RGB"])
@pytest.mark.parametrize("width", [40, 60])
def test_an_image_of_any_mode_is_seen_in_colour(mode, width):
    reader = ImageReader(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    image = colour_picture(width, 40).quantize(16).convert("RGB").convert(mode)
    found = reader.square(image, 8)
    assert found.mode == "RGB"
    expected = reader.square(image.convert("RGB"), 8)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert reader.pixels(image).shape == (3, 8, 8)


def test_no_ordinary_image_is_a_large_strip():
    from shared.imaging.images import MAX_PIXELS

    assert 2 * MAX_PIXELS <= LARGEST  # of two to one, the most pixels there may be


def test_a_strip_of_60_000_rows_needs_little(monkeypatch):
    image = Image.fromarray(np.zeros((60_000, 300, 3), np.uint8))
    tracked = sizes_made(monkeypatch)
    assert square(image, 336, "pad", MEAN).size == (336, 336)
    assert square(image, 336, "crop", MEAN).size == (336, 336)
    assert all(width * height <= 336 * 336 for width, height in tracked)


@pytest.mark.parametrize(
    ("width", "height"), [(500, 300), (300, 500), (336, 336), (31, 800), (337, 336), (20, 24)]
)
def test_crop_is_torchvisions_resize_and_centre_crop(width, height):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    image = colour_picture(width, height)
    expected = Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224)])(image)
    assert np.array_equal(np.asarray(square(image, 224, "crop", MEAN)), np.asarray(expected))


@settings(max_examples=60, deadline=None)
@given(sides, sides, grids)
def test_coverage_counts_the_image_pixels_of_each_patch(width, height, grid):
    """Against counting.

    A mask of the padded square, enlarged so that every patch border falls between pixels.
    """
    side = max(width, height)
    mask = np.zeros((side, side))
    top, left = (side - height) // 2, (side - width) // 2
    mask[top : top + height, left : left + width] = 1
    fine = np.kron(mask, np.ones((grid.rows, grid.columns)))
    counted = fine.reshape(grid.rows, side, grid.columns, side).mean((1, 3)).ravel()
    found = coverage(content_box(width, height, "pad"), grid)
    assert found.dtype == np.uint8
    assert found.shape == (grid.size,)
    assert np.abs(found - 255 * counted).max() <= 1
    assert np.array_equal(found == 0, counted == 0)  # zero means padding only, and nothing else
    assert ((found == 255) >= (counted == 1)).all()


@given(sides, sides)
def test_crop_covers_everything(width, height):
    assert content_box(width, height, "crop") == Box(0, 0, 1, 1)
    assert (coverage(content_box(width, height, "crop"), Grid(3, 5)) == 255).all()


def test_coverage_of_a_wide_image_by_hand():
    assert coverage(content_box(400, 200, "pad"), Grid(4, 2)).tolist() == [
        0,
        0,
        255,
        255,
        255,
        255,
        0,
        0,
    ]
    assert coverage(content_box(100, 400, "pad"), Grid(1, 4)).tolist() == [0, 128, 128, 0]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 16), st.integers(1, 16), st.integers(0, 16), st.integers(0, 16))
def test_growing_is_torchs_bilinear(rows, columns, more_rows, more_columns):
    target = Grid(rows + more_rows, columns + more_columns)
    tokens = torch.randn(
        rows * columns, 5, generator=torch.Generator().manual_seed(rows * 17 + columns)
    )
    laid_out = tokens.T.reshape(1, 5, rows, columns)
    expected = torch.nn.functional.interpolate(
        laid_out, tuple(target), mode="bilinear", align_corners=False
    )
    found = torch.from_numpy(interpolation_matrix(Grid(rows, columns), target)) @ tokens
    torch.testing.assert_close(found, expected.reshape(5, -1).T, atol=2e-5, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
def test_shrinking_by_whole_factors_is_the_area_mean(rows, columns, by_rows, by_columns):
    source = Grid(rows * by_rows, columns * by_columns)
    tokens = torch.randn(
        source.size, 3, generator=torch.Generator().manual_seed(rows + 31 * columns)
    )
    expected = torch.nn.functional.avg_pool2d(
        tokens.T.reshape(1, 3, *source), (by_rows, by_columns)
    )
    found = torch.from_numpy(interpolation_matrix(source, Grid(rows, columns))) @ tokens
    torch.testing.assert_close(found, expected.reshape(3, -1).T, atol=2e-6, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(grids, grids)
def test_rows_sum_to_one_and_shrinking_drops_no_patch(source, target):
    matrix = interpolation_matrix(source, target)
    assert matrix.shape == (target.size, source.size)
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-5)
    if target.rows <= source.rows and target.columns <= source.columns:
        # Every source patch weighs the same in the mean over the target patches.
        np.testing.assert_allclose(matrix.mean(0), 1 / source.size, atol=1e-6, rtol=1e-4)


def test_the_same_grid_is_the_identity():
    np.testing.assert_array_equal(interpolation_matrix(Grid(6, 7), Grid(6, 7)), np.eye(42))


@pytest.mark.parametrize(
    ("text", "grid"), [("24x24", (24, 24)), ("8X12", (8, 12)), ("1x1", (1, 1))]
)
def test_grids_are_read(text, grid):
    assert Grid.parse(text) == grid
    assert Grid.parse(str(Grid(*grid))) == grid
    assert Grid(*grid).size == grid[0] * grid[1]


@pytest.mark.parametrize(
    "text", ["24", "x24", "24x", "0x4", "24x-1", "2.5x4", "axb", "", "24x24x2"]
)
def test_what_is_no_grid_is_told(text):
    with pytest.raises(UserError, match="ROWSxCOLUMNS"):
        Grid.parse(text)
