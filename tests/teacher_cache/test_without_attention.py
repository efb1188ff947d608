"""`cache build --attention none`: S_e is that of the whole targets, and every command copes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image
from safetensors.numpy import load_file
from typer.testing import CliRunner

from shared.targets import TargetStore, first_difference
from shared.targets.namespace import list_namespaces
from teacher_cache.cli import app
from tests.fixtures.images import image_folder
from tests.fixtures.present import present
from tests.fixtures.targets import identity
from tests.fixtures.tiny_teacher import arguments, tiny_weights

pytestmark = pytest.mark.integration
ENCODINGS = {
    "matrix": [],
    "factors": ["--encoding", "factors"],
    "patches": ["--encoding", "patches"],
}


def run(*words: object) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module", params=ENCODINGS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images; their targets whole and of S_e alone, each in a store of its own."""
    folder = tmp_path_factory.mktemp(request.param)
    image_folder(folder / "images", 5)
    weights = tiny_weights(folder / "weights.safetensors")
    more = ENCODINGS[request.param]
    run(*arguments(folder / "images", folder / "whole", weights, *more))
    more = [*more, "--attention", "none"]
    run(*arguments(folder / "images", folder / "alone", weights, *more))
    return folder


def test_similarities_are_those_of_the_whole_targets(place: Path) -> None:
    whole, alone = (TargetStore.open(place / name, grid=(5, 5)) for name in ("whole", "alone"))
    assert list(whole.keys()) == list(alone.keys())
    for key in whole.keys():  # noqa: SIM118
        np.testing.assert_array_equal(whole[key].similarity, alone[key].similarity)
        np.testing.assert_array_equal(whole[key].coverage, alone[key].coverage)
        assert present(whole[key].attention).shape == (25,)
        assert alone[key].attention is None
        assert set(alone[key].arrays()) == {"similarity", "coverage"}
    assert alone.batch(list(alone.keys())).attention is None


def test_the_store_says_so_and_holds_no_such_array(place: Path) -> None:
    [whole], [alone] = (list_namespaces(place / name) for name in ("whole", "alone"))
    difference = present(first_difference(whole.identity, alone.identity))
    assert tuple(difference) == ("attention", "pooled", "none")
    assert "attention" not in whole.identity.document()
    root = place / "alone" / alone.name
    attributes = zarr.open_group(root, mode="r").attrs["medalign"]
    assert attributes["identity"]["attention"] == "none"
    [segment] = alone.segments()
    held = {path.name for path in (root / "segments" / segment).iterdir()}
    assert "coverage" in held
    assert "attention" not in held
    found = json.loads(run("info", "--store", place / "alone", "--json").output)
    assert found["namespaces"][0]["identity"]["attention"] == "none"
    assert "features block, S_e alone" in run("info", "--store", place / "alone").output
    assert "S_e alone" not in run("info", "--store", place / "whole").output


def test_the_same_build_finds_its_targets(place: Path) -> None:
    encoding = TargetStore.open(place / "alone").identity.encoding
    more = [*ENCODINGS[encoding], "--attention", "none", "--json"]
    words = arguments(place / "images", place / "alone", place / "weights.safetensors", *more)
    built = json.loads(run(*words).output)
    assert (built["found"], built["encoded"]) == (5, 0)
    planned = json.loads(run("plan", *words[1:]).output)
    assert (planned["found"], planned["missing"]) == (5, 0)


def test_keeping_commands_cope(place: Path, tmp_path: Path) -> None:
    store = place / "alone"
    more = ["--resample", 5, "--images", place / "images"]
    found = run(
        "verify", "--store", store, *more, "--weights", place / "weights.safetensors", "--json"
    )
    resampled = json.loads(found.output)["resampled"]
    assert (resampled["records"], resampled["attention"], resampled["sound"]) == (5, 0.0, True)

    run("merge", store, place / "whole", "--store", tmp_path / "merged")
    assert {one.identity.attention for one in list_namespaces(tmp_path / "merged")} == {
        "none",
        "pooled",
    }
    run("gc", "--store", tmp_path / "merged")
    run("verify", "--store", tmp_path / "merged")

    run("export", "--store", store, "--out", tmp_path / "plain", "--grid", "5x5")
    run("export", "--store", store, "--out", tmp_path / "npz", "--grid", "5x5", "--format", "npz")
    [first, *others] = sorted((tmp_path / "plain").glob("*.safetensors"))
    assert len(others) == 4
    assert set(load_file(first)) == {"similarity", "coverage"}
    assert set(np.load(tmp_path / "npz" / f"{first.stem}.npz")) == {"similarity", "coverage"}

    image = place / "images" / "image000.png"
    words = ["--store", store, "--image", image, "--out", tmp_path / "view.png", "--grid", "5x5"]
    seen = json.loads(run("view", *words, "--json").output)
    assert seen["patch"] == [2, 2]  # the middle
    with Image.open(tmp_path / "view.png") as picture:
        assert picture.width == 2 * picture.height


@pytest.mark.parametrize("kind", ["mean", "shuffled"])
def test_controls_are_of_the_same_kind(kind: str, place: Path, tmp_path: Path) -> None:
    store = TargetStore.open(place / "alone")
    words = ["control", "--store", place / "alone", "--to", tmp_path / "made", "--kind", kind]
    if store.identity.encoding != "matrix":
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert "controls are made of `matrix` stores" in str(done.exception)
        return
    run(*words)
    made = TargetStore.open(tmp_path / "made")
    assert made.identity.attention == "none"
    assert len(made) == 5
    key = next(iter(made.keys()))
    assert made[key].attention is None
    assert not np.array_equal(made[key].similarity, store[key].similarity)


def test_whole_targets_keep_the_identity_that_they_had() -> None:
    """The choice came later: a store's document without it is one of whole targets."""
    document = identity().document()
    assert "attention" not in document
    assert type(identity()).model_validate(document).attention == "pooled"
    assert identity(attention="none").fingerprint() != identity().fingerprint()
    with pytest.raises(ValueError, match="since format 2"):
        identity(attention="none", format=1)
