"""The memory that a large picture takes, by numpy's own account: bytes, never time."""

import tracemalloc

import numpy as np
import pytest

from shared.imaging.images import open_image, parse_reference
from shared.imaging.levels import gray_levels
from tests.fixtures.images import dicom_bytes, nifti_bytes

pytestmark = pytest.mark.unit
PIECES = 24 << 20  # what is handled at a time, whatever the size


def peak_of(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["i2", "f8"])
def test_a_volume_takes_eight_bytes_a_voxel(tmp_path, kind):
    volume = np.random.default_rng(0).integers(0, 2000, (256, 256, 96)).astype(kind)
    path = tmp_path / "volume.nii"
    path.write_bytes(nifti_bytes(volume, np.eye(4)))
    peak = peak_of(lambda: open_image(parse_reference(f"{path}#axial=9")))
    assert peak < 8 * volume.size + PIECES


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 600, "WindowWidth": 900}])
def test_a_mammogram_takes_eight_bytes_a_pixel(tmp_path, window):
    pixels = np.random.default_rng(0).integers(0, 4096, (2500, 2000)).astype(np.uint16)
    path = tmp_path / "mammogram.dcm"
    path.write_bytes(dicom_bytes(pixels, BitsStored=12, HighBit=11, **window))
    assert peak_of(lambda: open_image(path)) < 8 * pixels.size + PIECES


def test_levels_take_a_byte_a_pixel_beside_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 4096, (4000, 4000)).astype(np.uint16)
    assert peak_of(lambda: gray_levels(pixels)) < pixels.size + PIECES
