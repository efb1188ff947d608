"""`cache verify --resample` against stores that are and are not sound."""

import shutil

import numpy as np
import pytest

from shared.errors import UserError
from shared.imaging import Grid
from shared.imaging.keys import content_key
from shared.targets import TargetStore, TargetWriter
from teacher_cache.building import build
from teacher_cache.keeping.resample import resample
from teacher_cache.settings import Settings, load_of
from teacher_cache.sources import find_images
from tests.fixtures.images import image_folder
from tests.fixtures.tiny_teacher import TEACHER, tiny_weights

pytestmark = pytest.mark.integration
GRID = Settings(grid=Grid(10, 10))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture
def images(tmp_path):
    image_folder(tmp_path / "images", 7, **{"bad.png": b"bad"})
    shutil.copy(tmp_path / "images" / "image000.png", tmp_path / "images" / "zcopy.png")
    return find_images(str(tmp_path / "images"))


@pytest.mark.parametrize(
    "settings",
    [
        GRID,
        GRID._replace(precision="u8"),
        GRID._replace(encoding="factors"),
        GRID._replace(encoding="patches"),
        GRID._replace(dtype="bf16"),
        GRID._replace(geometry="crop"),
    ],
    ids=lambda settings: (
        f"{settings.encoding}-{settings.precision}-{settings.dtype}-{settings.geometry}"
    ),
)
def test_a_sound_store_is_what_its_teacher_says(tmp_path, images, weights, settings):
    build(TEACHER, images, tmp_path / "store", weights=weights, settings=settings)
    # Another batch size: other sums, so that the comparison is not of equal bits.
    found = resample(tmp_path / "store", images, 100, weights=weights, batch_size=3)
    assert found.records == 7
    assert found.sound
    assert not found.left_out
    assert resample(tmp_path / "store", images, 2, weights=weights).records == 2


@pytest.mark.parametrize("array", ["similarity", "attention", "coverage"])
def test_a_wrong_record_is_found_and_named(tmp_path, images, weights, array):
    """Records that pass every checksum and are still not the teacher's."""
    build(TEACHER, images, tmp_path / "store", weights=weights, settings=GRID)
    true = TargetStore.open(tmp_path / "store")
    with TargetWriter(tmp_path / "false", true.identity) as writer:
        for number, key in enumerate(true.keys()):
            record = dict(true[key]._asdict())
            if number == 3:
                wrong_key = key
                record[array] = (
                    255 - record[array] if array == "coverage" else np.roll(record[array], 1)
                )
            writer.add(key, record)
    found = resample(tmp_path / "false", images, 100, weights=weights)
    assert found.records == 7
    assert not found.sound
    if array == "similarity":
        from shared.imaging import ImageReference, content_key

        assert isinstance(found.worst, ImageReference)
        assert content_key(*found.worst) == wrong_key


def test_another_teacher_is_refused_by_name_of_the_field(tmp_path, images, weights):
    build(TEACHER, images, tmp_path / "store", weights=weights, settings=GRID)
    other = tiny_weights(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(UserError, match=r"weights is .* in the store"):
        resample(tmp_path / "store", images, 1, weights=other)


def test_images_that_the_store_does_not_hold_are_told(tmp_path, images, weights):
    build(TEACHER, images[:2], tmp_path / "store", weights=weights, settings=GRID)
    with pytest.raises(UserError, match="none of these 1 images"):
        resample(tmp_path / "store", images[3:4], 1, weights=weights)


def test_a_store_of_format_1_has_the_same_teacher(tmp_path, images, weights):
    """The form of the files makes no difference to the numbers."""
    build(TEACHER, images, tmp_path / "new", weights=weights, settings=GRID)
    opened = TargetStore.open(tmp_path / "new")
    old = opened.identity.model_copy(update={"format": 1})
    with TargetWriter(tmp_path / "old", old) as writer:
        for key in map(content_key, sorted((tmp_path / "images").glob("image*.png"))):
            arrays = opened.arrays([key])
            writer.add(key, {name: values[0] for name, values in arrays.items()})
    found = resample(tmp_path / "old", images, 3, weights=weights)
    assert found.sound
    assert load_of(old, weights, "cpu", "--weights").name == TEACHER
