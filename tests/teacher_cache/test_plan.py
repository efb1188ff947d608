"""`cache plan` against the build that it foretells."""

import os
import shutil

import pytest

from shared.errors import UserError
from shared.imaging import Grid
from teacher_cache.building import build
from teacher_cache.keeping.info import info
from teacher_cache.plan import plan
from teacher_cache.settings import Settings
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
    assert foretold.images_per_second is not None
    assert foretold.images_per_second > 0
    encoding = 8 / foretold.images_per_second
    assert foretold.loading_seconds > 0
    assert foretold.naming_seconds > 0
    before = foretold.loading_seconds + foretold.naming_seconds
    assert foretold.hours == pytest.approx((before + encoding) / 3600)
    assert foretold.hours_interval == (foretold.hours, foretold.hours)  # all were encoded

    after = plan(TEACHER, images, store, weights=weights, settings=GRID)
    assert (after.found, after.missing, after.quarantined) == (7, 0, 1)
    assert (after.probed, after.hours) == (0, None)


def test_what_an_earlier_build_left_out_is_told_apart(tmp_path, images, weights):
    from typer.testing import CliRunner

    from teacher_cache.cli import app
    from tests.fixtures.tiny_teacher import arguments

    line = arguments(tmp_path / "images", tmp_path / "store", weights)
    build(TEACHER, images, tmp_path / "store", weights=weights, settings=Settings(grid=Grid(5, 5)))
    image_folder(tmp_path / "images", 9)
    planned = CliRunner().invoke(app, ["plan", *line[1:]])
    assert planned.exit_code == 0, planned.exception
    assert "7 are in the store, 2 to encode\n1 more were left out by an earlier" in planned.stdout
    assert "to load the teacher" in planned.stdout


def test_a_plan_counts_damaged_segments_as_missing_and_says_so(tmp_path, images, weights, capsys):
    build(TEACHER, images, tmp_path / "store", weights=weights, settings=GRID, segment_records=4)
    first = sorted(tmp_path.glob("store/*/segments/*/manifest.json"))[0]
    first.write_bytes(b"")
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])  # whose index still knows the keys of all segments
    foretold = plan(TEACHER, images, tmp_path / "store", weights=weights, settings=GRID)
    assert foretold.found in (3, 4)
    assert foretold.found + foretold.missing + foretold.quarantined == 8
    assert "1 segments are damaged" in capsys.readouterr().err


def test_a_plan_for_a_store_that_cannot_be_read_is_an_error(tmp_path, images, weights, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    with pytest.raises(UserError, match="cannot read the store s3://bucket/none"):
        plan(TEACHER, images, "s3://bucket/none", weights=weights, settings=GRID)


def test_a_disk_that_is_too_small_is_said(tmp_path, images, weights, monkeypatch):
    from typer.testing import CliRunner

    from teacher_cache.cli import app
    from tests.fixtures.tiny_teacher import arguments

    line = arguments(tmp_path / "images", tmp_path / "store" / "deep", weights)
    usage = shutil.disk_usage(tmp_path)
    for free, said in ((100, True), (10**12, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        planned = CliRunner().invoke(app, ["plan", *line[1:]])
        assert planned.exit_code == 0, planned.exception
        assert ("do not fit: 100 B are free" in planned.stderr) == said
