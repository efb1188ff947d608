"""The command `cache` as a user types it: output, exit codes, errors with a way out."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from teacher_cache import cli
from tests.fixtures.images import image_folder
from tests.fixtures.tiny_teacher import TEACHER, arguments, records, tiny_weights

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture
def cache(monkeypatch, capsys):
    """Run one command line in this process.

    Returns (exit code, standard output, standard error).
    """

    def run(*line):
        monkeypatch.setattr(sys, "argv", ["cache", *map(str, line)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = exit_.code or 0
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def store(tmp_path, weights, cache):
    image_folder(tmp_path / "images", 4)
    assert cache(*arguments(tmp_path / "images", tmp_path / "store", weights))[0] == 0
    return tmp_path / "store"


def test_the_command_starts_without_torch():
    code = (
        "import sys; from teacher_cache.cli import app; "
        "assert not {'torch', 'numpy', 'zarr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_teachers_say_where_their_weights_come_from(cache):
    code, out, _ = cache("teachers", "--json")
    rows = {row["name"]: row for row in json.loads(out)["teachers"]}
    assert code == 0
    assert "UniMed-CLIP" in rows["unimed-l"]["source"]
    assert rows["unimed-b"]["licence"] == "CC BY-NC 4.0: no commercial use"
    assert "biomedclip" in cache("teachers")[1]


def test_missing_weights_and_misspelt_teachers(tmp_path, cache):
    image_folder(tmp_path / "images", 1)
    line = ("build", "--images", tmp_path / "images", "--store", tmp_path / "store", "--teacher")
    code, _, err = cache(*line, "unimed-b")
    assert (code, err.count("\n")) == (1, 1)
    assert "github.com/mbzuai-oryx/UniMed-CLIP" in err
    assert "--weights" in err
    assert "did you mean unimed-l" in cache(*line, "unimedl")[2]
    assert not (tmp_path / "store").exists()


def test_unreadable_images_fail_the_build_unless_they_are_allowed(tmp_path, weights, cache):
    image_folder(tmp_path / "images", 3, **{"bad.png": b"bad", "worse.png": b""})
    line = arguments(tmp_path / "images", tmp_path / "store", weights)
    code, out, err = cache(*line, "--json")
    assert code == 1
    assert "--allow-skips 2" in err
    assert json.loads(out)["encoded"] == 3
    assert {row["image"].rsplit("/", 1)[1] for row in json.loads(out)["left_out"]} == {
        "bad.png",
        "worse.png",
    }
    assert cache(*line, "--allow-skips", "1")[0] == 1
    assert cache(*line, "--allow-skips", "2")[0] == 0
    code, out, _ = cache("list", "--store", tmp_path / "store", "--quarantined", "--json")
    assert {row["reason"] for row in json.loads(out)["rows"]} >= {"the file is empty"}


def off_at_full_rank(paths, weights):
    """Return {content key: largest error of a similarity that int8 factors of full rank have}."""
    from shared.imaging import ImageReference, content_key
    from shared.targets.numbers.factors import InaccurateFactors, factorise
    from teacher_cache import stream
    from teacher_cache.teachers.registry import load_teacher

    teacher, off = load_teacher(TEACHER, weights), {}
    for path in paths:
        pixels, _ = stream.prepare(ImageReference(path), teacher.preprocessing, "pad")
        with pytest.raises(InaccurateFactors) as caught:
            factorise(stream.encode(teacher, pixels[None]).tokens[0], teacher.grid, 0.0, "u8")
        off[content_key(path)] = float(re.findall(r"off by ([\d.e-]+)", str(caught.value))[0])
    return off


def test_images_whose_factors_miss_the_tolerance_are_quarantined_and_the_rest_is_built(
    tmp_path, weights, cache
):
    off = off_at_full_rank(image_folder(tmp_path / "images", 6), weights)
    ordered = sorted(off.values())
    assert ordered[2] < ordered[3]
    tolerance = (ordered[2] + ordered[3]) / 2
    line = arguments(tmp_path / "images", tmp_path / "store", weights, "--encoding", "factors")
    line += ["--tolerance", str(tolerance), "--json"]
    for found in (0, 3):
        code, out, err = cache(*line)
        assert code == 1
        assert "--allow-skips 3" in err
        report = json.loads(out)
        assert (report["found"], report["encoded"], report["failed"]) == (found, 3 - found, 3)
        assert all("off by" in row["reason"] for row in report["left_out"])
    assert cache(*line, "--allow-skips", 3)[0] == 0
    assert set(records(tmp_path / "store")) == {
        key for key, error in off.items() if error < tolerance
    }
    listed = json.loads(cache("list", "--store", tmp_path / "store", "--quarantined", "--json")[1])[
        "rows"
    ]
    assert {row["key"] for row in listed} == {
        key.hex() for key, error in off.items() if error > tolerance
    }
    assert all("more than the tolerance" in row["reason"] for row in listed)
    assert len(listed) == len(list(tmp_path.glob("store/*/quarantine/*-*.json"))) == 3
    [described] = json.loads(cache("info", "--store", tmp_path / "store", "--json")[1])[
        "namespaces"
    ]
    assert (described["identity"]["precision"], described["quarantined"]) == ("u8", 3)
    assert described["error"]["native"]["largest"] <= tolerance
    assert cache("verify", "--store", tmp_path / "store")[0] == 0


def test_what_is_in_a_store(store, cache):
    code, out, _ = cache("info", "--store", store, "--json")
    [row] = json.loads(out)["namespaces"]
    assert (code, row["records"], row["teacher"]) == (0, 4, TEACHER)
    assert "5x5 patches, matrix f16" in cache("info", "--store", store)[1]
    code, out, _ = cache("list", "--store", store)
    assert {line.split()[1] for line in out.splitlines()} == {key.hex() for key in records(store)}
    code, out, err = cache("list", "--store", store, "--teacher", "unimed-l")
    assert (code, out) == (1, "")
    assert "`teacher` is 'timm:test_vit', wanted 'unimed-l'" in err
    assert "6 to 64 hexadecimal digits" in cache("list", "--store", store, "--fingerprint", "z")[2]


def test_verify_reports_damage_and_deviation(tmp_path, store, weights, cache):
    assert cache("verify", "--store", store)[0] == 0
    line = (
        "verify",
        "--store",
        store,
        "--resample",
        3,
        "--images",
        tmp_path / "images",
        "--weights",
        weights,
        "--json",
    )
    code, out, _ = cache(*line)
    assert (
        code,
        json.loads(out)["resampled"]["records"],
        json.loads(out)["resampled"]["sound"],
    ) == (0, 3, True)
    assert cache("verify", "--store", store, "--resample", 3)[0] == 1
    [shard] = store.glob("*/segments/*/similarity/c/*/*")
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.write_bytes(data)
    code, out, err = cache("verify", "--store", store, "--json")
    assert code == 1
    assert "gc --damaged" in err
    assert len(json.loads(out)["damaged"]) == 1
    code, out, _ = cache("gc", "--store", store, "--damaged", "--dry-run", "--json")
    assert len(json.loads(out)["swept"][0]["damaged"]) == 1
    assert cache("gc", "--store", store, "--damaged")[0] == 0
    assert cache("verify", "--store", store)[0] == 0


def test_merge_and_export(tmp_path, store, weights, cache):
    image_folder(tmp_path / "images", 6)
    assert cache(*arguments(tmp_path / "images", tmp_path / "other", weights))[0] == 0
    code, _, _ = cache("merge", store, tmp_path / "other", "--store", tmp_path / "joined", "--json")
    assert code == 0
    assert len(records(tmp_path / "joined")) == 6
    for form in ("npz", "safetensors"):
        assert (
            cache(
                "export", "--store", tmp_path / "joined", "--out", tmp_path / form, "--format", form
            )[0]
            == 0
        )
    for key, (similarity, attention, _) in records(tmp_path / "joined").items():
        with np.load(tmp_path / "npz" / f"{key.hex()}.npz") as arrays:
            assert arrays["similarity"].tobytes() == similarity
            assert arrays["attention"].tobytes() == attention
    assert len(list((tmp_path / "safetensors").glob("*.safetensors"))) == 6
    image = tmp_path / "images" / "image000.png"
    code, _, err = cache("export", "--store", tmp_path / "joined", "--out", image)
    assert (code, err.count("\n")) == (1, 1)
    assert f"cannot write to {image}: File exists" in err
    code, _, err = cache(
        "view", "--store", store, "--image", image, "--out", tmp_path / "no" / "view.png"
    )
    assert (code, err.count("\n")) == (1, 1)
    assert "choose another --out" in err


def test_plan_for_people_and_programs(tmp_path, weights, cache):
    image_folder(tmp_path / "images", 3)
    line = ["plan", *arguments(tmp_path / "images", tmp_path / "store", weights)[1:]]
    assert "3 images, 3 distinct; 0 are in the store, 3 to encode" in cache(*line)[1]
    assert json.loads(cache(*line, "--json")[1])["missing"] == 3
    assert not (tmp_path / "store").exists()


def test_view_draws_the_target(tmp_path, store, cache):
    from PIL import Image

    image, out = tmp_path / "images" / "image000.png", tmp_path / "view.png"
    code, text, err = cache("view", "--store", store, "--image", image, "--out", out, "--json")
    assert code == 0, err
    row, column = json.loads(text)["patch"]
    from shared.imaging import content_key
    from shared.targets import TargetStore
    from shared.targets.numbers.similarity import square_from_triangle
    from shared.targets.numbers.triangle import triangle_row

    target = TargetStore.open(store)[content_key(image)]
    assert target.attention.argmax() == 5 * row + column
    import torch

    whole = square_from_triangle(torch.from_numpy(target.similarity.astype("f4"))[None])[0].numpy()
    for patch in (0, 7, 24):
        assert np.array_equal(triangle_row(target.similarity, patch), whole[patch])
    picture = np.asarray(Image.open(out)).astype(int)
    assert picture.shape == (384, 3 * 384, 3)
    # The chosen patch is the reddest in both maps.
    redness = (picture[..., 0] - picture[..., 2])[:, 384:].reshape(384, 2, 384)
    height = 384 // 5
    there = redness[
        row * height + 20 : (row + 1) * height - 10,
        :,
        column * height + 20 : (column + 1) * height - 10,
    ]
    assert there.mean(axis=(0, 2)).min() > redness.mean()
    assert cache("view", "--store", store, "--image", image, "--out", out, "--patch", "9,9")[0] == 1
    assert "cache build" in cache("view", "--store", store, "--image", __file__, "--out", out)[2]


def test_durations_for_people():
    assert [cli.duration(h) for h in (0.01, 0.5, 3, 72)] == [
        "36 seconds",
        "30.0 minutes",
        "3.0 hours",
        "3.0 days",
    ]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (("info", "--store", "nowhere"), "no target store at nowhere"),
        (
            ("build", "--teacher", "dinov2-small", "--images", "nowhere", "--store", "s"),
            "no images at nowhere",
        ),
        (
            ("build", "--teacher", "dinov2-small", "--images", ".", "--store", "s", "--grid", "24"),
            "24x24",
        ),
        (("verify", "--store", "nowhere", "--images", "x"), "--resample"),
        (("verify", "--store", "nowhere"), "no target store at nowhere"),
        (
            ("verify", "--store", "image000.png"),
            "cannot read the store image000.png: Not a directory",
        ),
        (
            ("info", "--store", "image000.png"),
            "cannot read the store image000.png: Not a directory",
        ),
        (("gc", "--store", "image000.png"), "cannot read the store image000.png: Not a directory"),
    ],
)
def test_errors_are_one_line_with_a_way_out(cache, monkeypatch, tmp_path, line, hint):
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path, 1)
    code, _, err = cache(*line)
    assert (code, err.count("\n")) == (1, 1)
    assert hint in err


def test_misuse_is_two(cache):
    assert cache("build", "--teacher", "dinov2-small")[0] == 2
    assert (
        cache("build", "--teacher", "x", "--images", "y", "--store", "z", "--geometry", "stretch")[
            0
        ]
        == 2
    )
