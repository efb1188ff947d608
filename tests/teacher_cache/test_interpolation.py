"""The resize to the teacher's size is the one that its identity names."""

import numpy as np
import pytest
from PIL import Image

from shared.imaging import parse_reference
from shared.targets import Preprocessing
from teacher_cache.stream import prepare


@pytest.mark.parametrize("geometry", ["pad", "crop"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_interpolation_is_obeyed(tmp_path, geometry, interpolation):
    values = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    preprocessing = Preprocessing(
        size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation=interpolation
    )
    pixels, _ = prepare(parse_reference(str(tmp_path / "a.png")), preprocessing, geometry)
    wanted = Image.fromarray(values).resize(
        (32, 32),
        {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation],
    )
    levels = (pixels.numpy().transpose(1, 2, 0) * 0.25 + 0.5) * 255
    assert np.abs(levels - np.asarray(wanted, dtype=np.float32)).max() < 0.01
