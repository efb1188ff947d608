"""The images of benchmarks/cache_build.py: there are as many as are asked for, or a word."""

import pytest

from benchmarks.cache_build import SLICES, write_images
from benchmarks.real_features import real_images
from shared.imaging import open_image, parse_reference

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("axis", SLICES)
@pytest.mark.parametrize("end", [0, -1])
def test_the_outermost_slices_show_something(axis, end):
    volume = next(text for text in real_images() if "#" in text).partition("#")[0]
    open_image(parse_reference(f"{volume}#{axis}={SLICES[axis][end]}"))


def test_more_images_than_there_are(tmp_path):
    with pytest.raises(SystemExit, match="1000 images are asked for"):
        write_images(tmp_path / "images", 1000)
