"""Building a store in one process.

What is computed, what is not computed again, what is left out and why.
"""

import shutil

import numpy as np
import pytest
import torch

from shared.errors import UserError
from shared.imaging import Grid, ImageReference, content_key
from shared.targets import TargetStore
from shared.targets.namespace import list_namespaces, quarantined
from shared.targets.numbers.similarity import square_from_triangle
from teacher_cache import stream
from teacher_cache.building import build
from teacher_cache.encoder import Encoded
from teacher_cache.settings import Settings, settings_of
from teacher_cache.sources import find_images
from teacher_cache.teachers.registry import load_teacher
from tests.fixtures.images import image_folder
from tests.fixtures.present import present
from tests.fixtures.tiny_teacher import TEACHER, records, tiny_weights

pytestmark = pytest.mark.integration
GRID = Settings(grid=Grid(5, 5))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def run(folder, store, weights, settings=GRID, **options):
    return build(
        TEACHER, find_images(str(folder)), store, weights=weights, settings=settings, **options
    )


@pytest.mark.parametrize("geometry", ["pad", "crop"])
@pytest.mark.parametrize("grid", [Grid(5, 5), Grid(10, 10), Grid(14, 12)])
def test_targets_are_those_of_an_independent_evaluation(tmp_path, weights, geometry, grid):
    """Eq. 2 and 3 by torch's own interpolation and norms, one image at a time."""
    paths = image_folder(tmp_path / "images", 3)
    run(tmp_path / "images", tmp_path / "store", weights, Settings(geometry, grid), batch_size=2)
    teacher, store = load_teacher(TEACHER, weights), TargetStore.open(tmp_path / "store")
    for path in paths:
        pixels, _ = stream.prepare(ImageReference(path), teacher.preprocessing, geometry)
        found = stream.encode(teacher, pixels[None])
        maps = [
            part.reshape(1, 10, 10, -1).permute(0, 3, 1, 2)
            for part in (found.tokens, present(found.attention)[..., None])
        ]
        if grid.rows >= 10:
            maps = [
                torch.nn.functional.interpolate(
                    m, tuple(grid), mode="bilinear", align_corners=False
                )
                for m in maps
            ]
        else:
            maps = [torch.nn.functional.avg_pool2d(m, 2) for m in maps]
        tokens, attention = (m.flatten(2)[0].T for m in maps)
        unit = tokens / tokens.norm(dim=1, keepdim=True)
        target = store[content_key(path)]
        square = square_from_triangle(torch.from_numpy(target.similarity.astype(np.float32))[None])[
            0
        ]
        assert (square - unit @ unit.T).abs().max() < 1e-3
        assert np.abs(target.attention - attention[:, 0].numpy()).max() < 1e-6
        assert (target.coverage.min() < 255) == (
            geometry == "pad" and path.name not in ("image001.png",)
        )


def test_a_second_build_encodes_nothing_and_a_new_image_alone_is_added(
    tmp_path, weights, monkeypatch
):
    image_folder(tmp_path / "images", 5)
    first = run(tmp_path / "images", tmp_path / "store", weights)
    assert (first.images, first.distinct, first.found, first.encoded, first.failed) == (
        5,
        5,
        0,
        5,
        0,
    )
    assert 0 < first.encoding_seconds < first.seconds
    assert first.as_json()["images_per_second"] == 5 / first.encoding_seconds
    before = records(tmp_path / "store")
    sizes = []

    def counted(teacher, pixels, features):
        sizes.append(len(pixels))
        return encode(teacher, pixels, features)

    encode = stream.encode
    monkeypatch.setattr(stream, "encode", counted)
    # Renamed and copied images are the same images.
    (tmp_path / "images" / "image000.png").rename(tmp_path / "images" / "renamed.png")
    shutil.copy(tmp_path / "images" / "image001.png", tmp_path / "images" / "copy.png")
    second = run(tmp_path / "images", tmp_path / "store", weights)
    assert (second.images, second.distinct, second.found, second.encoded) == (6, 5, 5, 0)
    assert not sizes
    image_folder(tmp_path / "images", 6)
    assert run(tmp_path / "images", tmp_path / "store", weights).encoded == 1
    assert sizes == [1]
    after = records(tmp_path / "store")
    assert len(after) == 6
    assert {key: after[key] for key in before} == before


def test_the_batch_size_does_not_matter_beyond_rounding(tmp_path, weights):
    image_folder(tmp_path / "images", 5)
    run(tmp_path / "images", tmp_path / "one", weights, batch_size=1, workers=1, segment_records=2)
    run(tmp_path / "images", tmp_path / "all", weights, batch_size=8, workers=4)
    one, other = TargetStore.open(tmp_path / "one"), TargetStore.open(tmp_path / "all")
    assert len(one.namespace.segments()) == 3
    assert len(other.namespace.segments()) == 1
    for key in one.keys():  # noqa: SIM118
        difference = one[key].similarity.astype("f4") - other[key].similarity.astype("f4")
        assert np.abs(difference).max() <= 1e-3
        assert np.array_equal(one[key].coverage, other[key].coverage)


def test_what_cannot_be_read_is_quarantined_once_and_the_rest_is_built(tmp_path, weights):
    bad = {
        "empty.png": b"",
        "text.jpg": b"no image at all",
        "cut.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    }
    image_folder(tmp_path / "images", 3, **bad)
    for _ in range(2):
        result = run(tmp_path / "images", tmp_path / "store", weights, batch_size=2)
    assert (result.distinct, result.found, result.encoded, result.failed) == (6, 3, 0, 3)
    assert {reference.path.name for reference, _ in result.left_out} == set(bad)
    [namespace] = list_namespaces(tmp_path / "store")
    listed = list(quarantined(namespace))
    assert {record.key for record in listed} == {
        content_key(tmp_path / "images" / name) for name in bad
    }
    assert all(record.reason and str(tmp_path) not in record.reason for record in listed)
    assert len(list((tmp_path / "store" / namespace.name / "quarantine").glob("*-*.json"))) == 3


def test_a_damaged_quarantine_record_stops_no_build(tmp_path, weights, capsys):
    image_folder(tmp_path / "images", 2, **{"text.jpg": b"no image at all"})
    run(tmp_path / "images", tmp_path / "store", weights)
    [record] = tmp_path.glob("store/*/quarantine/*-*.json")
    record.write_bytes(b"")
    result = run(tmp_path / "images", tmp_path / "store", weights)
    assert (result.found, result.failed) == (2, 1)
    assert f"{record.name}: delete it" in capsys.readouterr().err
    record.unlink()
    run(tmp_path / "images", tmp_path / "store", weights)
    [namespace] = list_namespaces(tmp_path / "store")
    assert [one.key for one in quarantined(namespace)] == [
        content_key(tmp_path / "images" / "text.jpg")
    ]


def test_a_file_that_cannot_be_opened_is_told_but_not_quarantined(tmp_path, weights):
    paths = image_folder(tmp_path / "images", 2)
    references = [ImageReference(path) for path in [*paths, tmp_path / "gone.png"]]
    result = build(TEACHER, references, tmp_path / "store", weights=weights, settings=GRID)
    assert (result.encoded, result.failed) == (2, 1)
    assert "No such file" in result.left_out[0][1]
    [namespace] = list_namespaces(tmp_path / "store")
    assert not list(quarantined(namespace))


def test_a_file_that_vanishes_after_it_was_named_does_not_end_the_build(
    tmp_path, weights, monkeypatch
):
    paths = image_folder(tmp_path / "images", 3)
    opened = stream.open_reference

    def vanishing(reference):
        if reference.path == paths[1]:
            raise FileNotFoundError(2, "No such file or directory")
        return opened(reference)

    monkeypatch.setattr(stream, "open_reference", vanishing)
    result = run(tmp_path / "images", tmp_path / "store", weights, batch_size=3)
    assert (result.encoded, result.failed) == (2, 1)


def test_values_that_are_not_finite_stop_the_build(tmp_path, weights, monkeypatch):
    image_folder(tmp_path / "images", 2)
    encode = stream.encode

    def overflowing(teacher, pixels, features):
        found = encode(teacher, pixels, features)
        return Encoded(found.tokens * float("inf"), found.attention)

    monkeypatch.setattr(stream, "encode", overflowing)
    with pytest.raises(UserError, match="not finite in fp32"):
        run(tmp_path / "images", tmp_path / "store", weights)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 5e-2), ("fp16", 1e-2)])
def test_lower_precisions_stay_close_and_apart(tmp_path, weights, dtype, tolerance):
    image_folder(tmp_path / "images", 3)
    run(tmp_path / "images", tmp_path / "store", weights)
    run(tmp_path / "images", tmp_path / "store", weights, Settings(grid=Grid(5, 5), dtype=dtype))
    full, low = sorted(
        list_namespaces(tmp_path / "store"), key=lambda one: one.identity.dtype != "fp32"
    )
    assert low.identity.dtype == dtype
    expected, found = (
        TargetStore.open(tmp_path / "store", fingerprint=n.identity.fingerprint())
        for n in (full, low)
    )
    for key in expected.keys():  # noqa: SIM118
        assert (
            np.abs(expected[key].similarity.astype("f4") - found[key].similarity.astype("f4")).max()
            <= tolerance
        )
        one, other = present(expected[key].attention), present(found[key].attention)
        assert np.abs(one - other).max() <= tolerance / 10


def test_a_damaged_segment_is_built_again(tmp_path, weights, capsys):
    image_folder(tmp_path / "images", 4)
    run(tmp_path / "images", tmp_path / "store", weights, segment_records=2, batch_size=2)
    whole = records(tmp_path / "store")
    [namespace] = list_namespaces(tmp_path / "store")
    segment = tmp_path / "store" / namespace.path("segments", namespace.segments()[0])
    (segment / "manifest.json").write_bytes(b"{}")
    from shared.targets.opening import forget_index

    forget_index(namespace)
    again = run(tmp_path / "images", tmp_path / "store", weights, segment_records=2, batch_size=2)
    assert (again.found, again.encoded) == (2, 2)
    assert "damaged" in capsys.readouterr().err
    assert records(tmp_path / "store") == whole


def test_settings_follow_from_an_identity():
    from tests.fixtures.targets import identity

    for changes in (
        {},
        {"encoding": "factors", "tolerance": 0.02},
        {"encoding": "patches", "width": 64, "rotation": "hadamard"},
        {"geometry": "crop", "dtype": "bf16", "precision": "u8"},
    ):
        made = identity(**changes)
        settings = settings_of(made)
        assert settings.grid == made.grid
        assert (settings.tolerance == made.tolerance) or made.tolerance is None
        assert settings.precision == made.precision
        assert all(
            getattr(settings, name) == getattr(made, name)
            for name in ("geometry", "dtype", "precision", "encoding")
        )


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    from shared.processes import choose_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(UserError, match="no GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="one rank a GPU"):
        choose_device("cuda")
