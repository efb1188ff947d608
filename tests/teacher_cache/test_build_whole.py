"""One image, one file name or one variable of the environment ends no build, and hides no part."""

import json
import os

import pytest
from typer.testing import CliRunner

from shared.errors import UserError
from shared.imaging import Grid, ImageReference, content_key
from shared.imaging import keys as naming
from shared.targets import TargetStore, TargetWriter
from shared.targets.namespace import list_namespaces, quarantine, quarantined
from teacher_cache import stream
from teacher_cache.building import build
from teacher_cache.cli import app
from teacher_cache.encoder import Encoded
from teacher_cache.plan import plan
from teacher_cache.ranks import Ranks
from teacher_cache.settings import Settings
from teacher_cache.sources import find_images
from tests.fixtures.images import colour_picture, encoded, image_folder
from tests.fixtures.targets import identity, key, matrix_record
from tests.fixtures.tiny_teacher import TEACHER, arguments, tiny_weights

pytestmark = pytest.mark.integration
GRID = Settings(grid=Grid(5, 5))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def run(folder, store, weights, **options):
    return build(
        TEACHER, find_images(str(folder)), store, weights=weights, settings=GRID, **options
    )


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_an_image_that_overflows_is_quarantined_alone(tmp_path, weights, monkeypatch, batch_size):
    paths = image_folder(tmp_path / "images", 6)
    encode, seen = stream.encode, 0

    def overflowing(teacher, pixels, features):
        nonlocal seen
        found = encode(teacher, pixels, features)
        tokens = found.tokens.clone()
        if seen <= 4 < seen + len(pixels):
            tokens[4 - seen, 3, 2] = float("inf")
        seen += len(pixels)
        return Encoded(tokens, found.attention)

    monkeypatch.setattr(stream, "encode", overflowing)
    result = run(tmp_path / "images", tmp_path / "store", weights, batch_size=batch_size)
    assert (result.encoded, result.failed) == (5, 1)
    [(reference, reason)] = result.left_out
    assert reference.path == paths[4]
    assert reason == "the teacher's values are not finite in fp32: use a wider --dtype"
    [namespace] = list_namespaces(tmp_path / "store")
    assert [one.key for one in quarantined(namespace)] == [content_key(paths[4])]

    # Its later success ends the quarantine.
    monkeypatch.setattr(stream, "encode", encode)
    result = run(tmp_path / "images", tmp_path / "store", weights)
    assert (result.found, result.encoded, result.failed) == (5, 1, 0)
    assert not list(quarantined(namespace))


@pytest.mark.parametrize("error", [UserError, ValueError, KeyboardInterrupt, OSError])
def test_what_is_finished_is_published_whatever_the_error(tmp_path, error):
    def fail():
        with TargetWriter(tmp_path / "store", identity()) as writer:
            writer.add(key(0), matrix_record(0))
            raise error("from elsewhere")

    with pytest.raises(error, match="from elsewhere"):
        fail()
    assert list(TargetStore.open(tmp_path / "store").keys()) == [key(0)]


def cache(*line):
    return CliRunner().invoke(app, list(map(str, line)))


@pytest.fixture
def left_ranks(monkeypatch):
    """RANK and WORLD_SIZE of another job, left in the environment."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)


def test_a_share_is_said_and_is_not_the_whole(tmp_path, weights, left_ranks, monkeypatch, capfd):
    image_folder(tmp_path / "images", 9)
    first = run(tmp_path / "images", tmp_path / "store", weights)
    assert 0 < first.encoded < 9
    assert first.elsewhere == 9 - first.encoded
    assert f"rank 0 of 2: its share is {first.encoded} of 9" in capfd.readouterr().err
    line = arguments(tmp_path / "images", tmp_path / "store", weights)
    again = cache(*line)
    assert isinstance(again.exception, UserError)
    assert f"{first.elsewhere} images are the share of other ranks" in str(again.exception)
    monkeypatch.setenv("RANK", "1")
    second = cache(*line, "--json")
    assert second.exit_code == 0, second.exception
    assert len(TargetStore.open(tmp_path / "store")) == 9
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert run(tmp_path / "images", tmp_path / "store", weights).found == 9


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"RANK": "2"}, "name no rank"),
        ({"RANK": "-1"}, "name no rank"),
        ({"WORLD_SIZE": "two"}, "name no rank"),
        ({"MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT"),
    ],
)
def test_an_environment_of_no_rank_is_one_line(
    tmp_path, weights, left_ranks, monkeypatch, changes, says
):
    image_folder(tmp_path / "images", 1)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says):
        run(tmp_path / "images", tmp_path / "store", weights)


def test_links_to_folders_are_followed_and_links_to_nothing_are_named(tmp_path, weights):
    image_folder(tmp_path / "elsewhere", 2)
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    (images / "deep" / "circle").symlink_to(images)
    (images / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = [reference.path.relative_to(images).as_posix() for reference in find_images(images)]
    assert found == ["gone.png", "linked/image000.png", "linked/image001.png"]
    result = run(images, tmp_path / "store", weights)
    assert (result.encoded, result.failed) == (2, 1)
    assert "cannot be read" in result.left_out[0][1]
    assert find_images(str(images / "g*.png")) == [ImageReference(images / "gone.png")]


def test_a_file_name_that_is_not_utf_8(tmp_path, weights):
    image_folder(tmp_path / "images", 1)
    for seed, name in enumerate((b"r\xf6ntgen.png", b"thorax\xff.png"), start=7):
        picture = encoded(colour_picture(seed=seed), "PNG")
        (tmp_path / "images" / os.fsdecode(name)).write_bytes(picture)
    (tmp_path / "images" / os.fsdecode(b"bad\xff.png")).write_bytes(b"bad")
    (tmp_path / "images" / os.fsdecode(b"copy\xff.png")).write_bytes(b"bad")
    line = arguments(tmp_path / "images", tmp_path / "store", weights, "--allow-skips", 1)
    for _ in range(2):
        planned = cache("plan", *line[1:-2])
        assert planned.exit_code == 0, planned.exception
    built = cache(*line)
    assert built.exit_code == 0, built.exception
    assert len(TargetStore.open(tmp_path / "store")) == 3
    assert json.loads(cache(*line, "--json").stdout)["found"] == 3


@pytest.mark.parametrize("grid", [Grid(300, 300), Grid(65, 64)])
def test_a_grid_whose_records_cannot_fit_is_one_line(tmp_path, weights, grid):
    image_folder(tmp_path / "images", 1)
    found = find_images(str(tmp_path / "images"))
    settings = Settings(grid=grid)
    for work in (build, plan):
        with pytest.raises(
            UserError, match=f"--grid {grid.rows}x{grid.columns} is .* [MG]B an image"
        ):
            work(TEACHER, found, tmp_path / "store", weights=weights, settings=settings)
    assert not (tmp_path / "store").exists()


def test_slices_of_one_volume_are_hashed_once(tmp_path, monkeypatch):
    volume = tmp_path / "volume.nii"
    volume.write_bytes(b"abc")
    other = tmp_path / "other"
    other.write_bytes(b"other")
    references = [ImageReference(volume, f"axial={number}") for number in range(50)]
    references[20:20] = [ImageReference(volume), ImageReference(other, "frame=1")]
    digest, read = naming._digest, []

    def noted(path):
        read.append(path)
        return digest(path)

    monkeypatch.setattr(naming, "_digest", noted)
    found = dict(naming.content_keys(references))
    assert sorted(read) == [other, volume]
    assert list(found) == references
    assert found == {reference: content_key(*reference) for reference in references}
    assert found[references[0]] != found[references[1]]
    volume.unlink()
    failed = [one for _, one in naming.content_keys(references) if isinstance(one, OSError)]
    assert len(failed) == 51


@pytest.mark.parametrize(
    ("rank", "world", "said"), [(0, 2, "1 other rank"), (1, 2, "1 other rank"), (2, 4, "3 other")]
)
def test_who_waits_for_others_says_so_before_it_waits(
    tmp_path, weights, monkeypatch, capfd, rank, world, said
):
    """MASTER_ADDR that another job left makes a build wait for ranks that never come."""
    image_folder(tmp_path / "images", 1)
    for name, value in {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    heard = []

    def meeting(ranks):
        heard.append(capfd.readouterr().err)
        raise UserError("it would wait here")

    monkeypatch.setattr(Ranks, "meeting", meeting)
    with pytest.raises(UserError, match="would wait"):
        run(tmp_path / "images", tmp_path / "store", weights)
    assert f"rank {rank}: waiting for {said}" in heard[0]


def test_a_build_ends_the_quarantine_of_an_image_that_it_encodes(tmp_path, weights):
    """A store that was moved, or an older reader of images: the record is there, and no fault."""
    image_folder(tmp_path / "images", 2, **{"bad.png": b"bad"})
    run(tmp_path / "images", tmp_path / "store", weights)
    [namespace] = list_namespaces(tmp_path / "store")
    first = content_key(tmp_path / "images/image000.png")
    quarantine(namespace, first, "it could not be read then")
    assert len(list(quarantined(namespace))) == 2
    run(tmp_path / "images", tmp_path / "store", weights)
    [left] = quarantined(namespace)
    assert left.key == content_key(tmp_path / "images/bad.png")
