"""`cache plan` against the build it foretells, `cache verify --resample` against stores that are and are not sound."""

import os
import shutil

import numpy as np
import pytest

from shared.errors import UserError
from shared.imaging import Grid
from shared.targets import TargetStore, TargetWriter
from teacher_cache.building import Settings, build
from teacher_cache.keeping.maintain import info
from teacher_cache.keeping.resample import resample
from teacher_cache.plan import plan
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


def test_a_plan_foretells_the_build_and_writes_nothing(tmp_path, images, weights):
    store = tmp_path / "store"
    foretold = plan(TEACHER, images, store, weights=weights, settings=GRID, batch_size=4)
    assert not store.exists()
    assert (foretold.images, foretold.distinct, foretold.found, foretold.missing) == (9, 8, 0, 8)
    [(repeated, first)] = foretold.duplicates
    assert (repeated.path.name, first.path.name) == ("zcopy.png", "image000.png")
    assert [reference.path.name for reference, _ in foretold.left_out] == ["bad.png"]

    built = build(TEACHER, images, store, weights=weights, settings=GRID)
    [described] = info(store)
    assert foretold.namespace == built.namespace
    assert foretold.probed == built.encoded == 7
    assert foretold.bytes_per_record == pytest.approx(described["bytes_per_record"], rel=0.1)
    assert foretold.images_per_second > 0
    assert foretold.hours == pytest.approx(8 / foretold.images_per_second / 3600)

    after = plan(TEACHER, images, store, weights=weights, settings=GRID)
    assert (after.found, after.missing, after.probed, after.hours) == (7, 1, 0, None)


def test_a_plan_counts_damaged_segments_as_missing_and_says_so(tmp_path, images, weights, capsys):
    build(TEACHER, images, tmp_path / "store", weights=weights, settings=GRID, segment_records=4)
    first = sorted(tmp_path.glob("store/*/segments/*/manifest.json"))[0]
    first.write_bytes(b"")
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])  # whose index still knows the keys of all segments
    foretold = plan(TEACHER, images, tmp_path / "store", weights=weights, settings=GRID)
    assert foretold.found in (3, 4)
    assert foretold.found + foretold.missing == 8
    assert "1 segments are damaged" in capsys.readouterr().err


def test_a_plan_for_a_store_that_cannot_be_read_is_an_error(tmp_path, images, weights, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    with pytest.raises(UserError, match="cannot read the store s3://bucket/none"):
        plan(TEACHER, images, "s3://bucket/none", weights=weights, settings=GRID)


@pytest.mark.parametrize(
    "settings",
    [
        GRID,
        GRID._replace(precision="u8"),
        GRID._replace(encoding="factors"),
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
        from shared.imaging import content_key

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
