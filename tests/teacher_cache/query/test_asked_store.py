"""A store built with `--query`: asked without images and weights, checked, joined, kept apart."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from typer.testing import CliRunner

from pipelines.regions.cache import app
from pipelines.regions.query.stored import Stored
from shared.imaging.keys import content_key
from shared.targets import TargetStore
from shared.targets.namespace import list_namespaces
from shared.targets.numbers.query import basis_of
from teacher_cache.teachers.registry import load_teacher
from teacher_cache.teachers.trained import Trained
from tests.fixtures.teacher_checkpoints import use_tiny_architectures
from tests.fixtures.text_towers import BOTH, write_open_clip

pytestmark = pytest.mark.integration
NAME = "open_clip:ViT-B-16-quickgelu"
ARCHITECTURE = "ViT-B-16-quickgelu"
METHODS = ("grad-eclip", "maskclip", "clearclip", "sclip", "textspan")
QUESTION = "Is there an  Opacity in the left lung?"  # with a doubled blank, in capitals
TRAINED = ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--interpolation", "bicubic",
           "--quick-gelu"]  # fmt: skip


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Four images, and a whole CLIP of open_clip's format with random weights."""
    from open_clip import factory

    use_tiny_architectures(monkeypatch)
    monkeypatch.setitem(factory._MODEL_CONFIGS, ARCHITECTURE, {**BOTH, "quick_gelu": True})
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(3)
    for number, (width, height) in enumerate([(40, 40), (60, 30), (33, 52), (48, 48)]):
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    model = write_open_clip(tmp_path / "clip.pt")
    return {"images": images, "weights": tmp_path / "clip.pt", "model": model, "home": tmp_path}


def cache(*args: object, fails: bool = False) -> Any:
    result = CliRunner().invoke(app, list(map(str, args)))
    assert (result.exit_code != 0) == fails, result.output
    return result


def build(place: dict[str, Any], store: Path, *more: object, fails: bool = False) -> Any:
    return cache(
        "build", "--teacher", NAME, "--weights", place["weights"], *TRAINED, "--images",
        place["images"], "--store", store, *more, fails=fails,
    )  # fmt: skip


def keys_of(place: dict[str, Any]) -> list[bytes]:
    return [content_key(file) for file in sorted(place["images"].iterdir())]


def text_vectors(place: dict[str, Any], texts: list[str]) -> np.ndarray:
    """Return open_clip's own embeddings of texts."""
    import open_clip

    with torch.no_grad():
        tokens = open_clip.get_tokenizer(ARCHITECTURE)(texts)
        return normalize(place["model"].encode_text(tokens), dim=-1).double().numpy()


@pytest.mark.parametrize("method", METHODS)
def test_a_text_is_asked_without_images_and_weights(place: dict[str, Any], method: str) -> None:
    """The rank is the whole text space: what is left is int8's step, and terms in float16."""
    from shared.imaging.images import parse_reference
    from teacher_cache.encoder import encode
    from teacher_cache.query.readouts import with_readout
    from teacher_cache.stream import prepare

    store = place["home"] / "store"
    data = place["home"] / "train.json"
    turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "No."}]
    data.write_text(json.dumps([{"id": "1", "image": "0.png", "conversations": turns}]))
    build(place, store, "--query", method, "--query-rank", 24, "--data", data, "--grid", "5x5")
    opened = TargetStore.open(store, grid=(5, 5))
    keys, query = keys_of(place), opened.identity.query
    assert query is not None

    teacher = load_teacher(
        NAME, str(place["weights"]), said=Trained((0.5,) * 3, (0.5,) * 3, "bicubic", True)
    )
    ready = with_readout(teacher, query, np.eye(24))
    pairs = [
        prepare(parse_reference(str(file)), teacher.preprocessing, "pad")
        for file in sorted(place["images"].iterdir())
    ]
    exact = encode(ready, torch.stack([pixels for pixels, _ in pairs])).query
    assert exact is not None
    shutil.rmtree(place["images"])
    place["weights"].unlink()

    found = Stored(opened).maps(keys, [QUESTION])[:, 0]
    words = text_vectors(place, ["is there an opacity in the left lung?"])[0]
    native = np.maximum(exact.double().numpy() @ words, 0)
    from shared.imaging.grid import Grid, interpolation_matrix

    wanted = native @ interpolation_matrix(teacher.grid, Grid(5, 5)).T
    wanted[opened.coverage(keys) == 0] = 0
    largest = np.abs(exact.double().numpy()).max()
    # int8 is off by half a step a component, 24 components of a unit vector at most sqrt(24) steps.
    bound = largest / 127 / 2 * np.sqrt(24) + 2e-3 * largest
    assert np.abs(found - wanted).max() < bound
    assert wanted.max() > 10 * bound or method == "textspan", "the check can tell maps apart"


def test_targets_are_those_of_a_store_without(place: dict[str, Any]) -> None:
    home, keys = place["home"], keys_of(place)
    build(place, home / "plain", "--grid", "5x5")
    build(place, home / "asked", "--grid", "5x5", "--query", "maskclip", "--query-rank", 8)
    plain, asked = (TargetStore.open(home / name).batch(keys) for name in ("plain", "asked"))
    for first, second in zip(plain, asked, strict=True):
        np.testing.assert_array_equal(first, second)
    assert TargetStore.open(home / "plain").identity.query is None


@pytest.mark.parametrize("encoding", ["matrix", "factors", "patches"])
def test_verify_encodes_again_without_a_text_tower(place: dict[str, Any], encoding: str) -> None:
    store = place["home"] / "store"
    build(place, store, "--query", "grad-eclip", "--query-rank", 8, "--encoding", encoding)
    result = cache(
        "verify", "--store", store, "--resample", 4, "--images", place["images"], "--weights",
        place["weights"],
    )  # fmt: skip
    assert "query by" in result.output
    again = build(place, store, "--query", "grad-eclip", "--query-rank", 8, "--encoding", encoding)
    assert "4 were in the store, 0 encoded" in again.output
    assert "grad-eclip (published heads), rank 8" in cache("info", "--store", store).output
    document = json.loads(cache("info", "--store", store, "--json").output)
    assert "basis" not in document["namespaces"][0]["provenance"]["query"]


def test_what_another_machine_adds_is_read_in_the_first_basis(
    place: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second machine whose sums differ finds other directions; the store keeps its own."""
    from teacher_cache.texts import basis

    home, keys = place["home"], keys_of(place)
    asked = ("--query", "maskclip", "--query-rank", 8, "--grid", "5x5")
    build(place, home / "whole", *asked)
    build(place, home / "parts", *asked, "--limit", 2)
    own = basis.basis_of

    def turned(tower, rank):
        made = own(tower, rank)
        return made._replace(matrix=made.matrix[:, ::-1].copy())

    monkeypatch.setattr(basis, "basis_of", turned)
    build(place, home / "parts", *asked)
    whole, parts = (TargetStore.open(home / name) for name in ("whole", "parts"))
    first, second = (
        store.arrays(keys)["query"] * store.arrays(keys)["query_scale"][:, :, None].astype(float)
        for store in (whole, parts)
    )
    # A batch of two sums in another order than one of four: at most a step of int8.
    np.testing.assert_allclose(first, second, atol=1.01 * np.abs(first).max() / 127, rtol=0)
    assert np.abs(first - first[:, :, ::-1]).max() > 0.1 * np.abs(first).max()
    build(place, home / "turned", *asked)
    message = cache("merge", home / "turned", "--store", home / "whole", fails=True)
    assert "asked in another basis" in str(message.output) + str(message.exception)


def test_a_copy_of_the_folder_begins_a_store_that_merges(
    place: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way out that the refusal names."""
    from teacher_cache.texts import basis

    home = place["home"]
    asked = ("--query", "maskclip", "--query-rank", 8, "--grid", "5x5")
    build(place, home / "first", *asked, "--limit", 2)
    shutil.copytree(home / "first", home / "second")
    own = basis.basis_of
    monkeypatch.setattr(
        basis,
        "basis_of",
        lambda tower, rank: (made := own(tower, rank))._replace(matrix=-made.matrix),
    )
    build(place, home / "second", *asked)
    cache("merge", home / "second", "--store", home / "first")
    assert len(TargetStore.open(home / "first")) == 4


def test_the_basis_spans_the_terms_of_the_tower(place: dict[str, Any]) -> None:
    """What the store keeps is the first directions of open_clip's own embeddings of the terms."""
    from teacher_cache.texts.basis import terms

    store = place["home"] / "store"
    build(place, store, "--query", "sclip", "--query-rank", 4, "--limit", 1)
    (namespace,) = list_namespaces(store)
    kept = basis_of(namespace.provenance).astype(np.float64)
    every = text_vectors(place, terms()[1])
    left, _, _ = np.linalg.svd(every.T @ every)
    # Two planes are one if all cosines of their principal angles are 1; float16 turns by 2^-11.
    cosines = np.linalg.svd(left[:, :4].T @ np.linalg.qr(kept)[0])[1]
    np.testing.assert_allclose(cosines, 1, atol=1e-3)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--query-rank", 1000), "at most"),
        (("--teacher", "dinov2-small"), "needs a teacher with a text space"),
    ],
)
def test_refusals(place: dict[str, Any], args: tuple[object, ...], said: str) -> None:
    store = place["home"] / "store"
    given = ["--teacher", NAME, "--weights", place["weights"], *TRAINED]
    if args[0] == "--teacher":
        given = []
    result = cache(
        "build", *given, "--images", place["images"], "--store", store, "--query", "maskclip",
        *args, fails=True,
    )  # fmt: skip
    assert said in result.output + str(result.exception)
    assert not store.exists() or not list(store.iterdir())


def test_a_store_that_cannot_be_asked_says_what_can(place: dict[str, Any]) -> None:
    store, key = place["home"] / "store", keys_of(place)[0].hex()
    build(place, store, "--grid", "5x5")
    asked = ("query", "map", "--store", store, "--text", "lung", "--key", key, "--out",
             place["home"] / "map.png")  # fmt: skip
    result = cache(*asked, fails=True)
    assert "build with --query" in result.output + str(result.exception)
    assert "names the questions of --query" in str(
        build(place, store, "--data", "x.json", fails=True).exception
    )


def test_commands_draw_and_write_maps(place: dict[str, Any]) -> None:
    """The tower is loaded for a text that the store does not keep."""
    home = place["home"]
    build(place, home / "store", "--query", "clearclip", "--query-rank", 16, "--grid", "5x5")
    key = keys_of(place)[1].hex()
    asked = ("query", "map", "--store", home / "store", "--text", "mass", "--key", key, "--out",
             home / "map.png")  # fmt: skip
    refused = cache(*asked, fails=True)
    assert "cache text" in str(refused.exception)
    assert not (home / "map.png").exists()
    made = json.loads(cache(*asked, "--weights", place["weights"], "--json").output)
    assert len(made["map"]) == 25
    assert 0 <= made["outside"] <= 1
    assert (home / "map.png").is_file()
    cache("text", "--teacher", NAME, "--weights", place["weights"], *TRAINED, "--store",
          home / "store", "--prompt", "mass")  # fmt: skip
    again = json.loads(cache(*asked, "--json").output)
    np.testing.assert_allclose(again["map"], made["map"], atol=2e-6)

    records = [
        {"id": str(number), "image": f"{number}.png", "conversations": [
            {"from": "human", "value": f"<image>\nIs a {word} there?"},
            {"from": "gpt", "value": "No."}]}
        for number, word in enumerate(("mass", "lesion", "mass", "sign"))
    ]  # fmt: skip
    (home / "train.json").write_text(json.dumps(records))
    cache(
        "query", "maps", "--store", home / "store", "--data", home / "train.json", "--image-root",
        place["images"], "--to", home / "maps", "--weights", place["weights"],
    )  # fmt: skip
    maps = TargetStore.open(home / "maps", maps=True)
    from shared.targets.maps import map_key

    stored = Stored(TargetStore.open(home / "store"), str(place["weights"]))
    for file, word in zip(sorted(place["images"].iterdir()), ("mass", "lesion"), strict=False):
        name = map_key(content_key(file), f"Is a {word} there?")
        expected = stored.maps([content_key(file)], [f"is a {word} there?"])[0, 0]
        if expected.sum() > 0:
            found = maps.arrays([name])["attention"][0]
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_audit_asks_the_store_for_the_labels(place: dict[str, Any]) -> None:
    """Pointing is by the store's own maps; without the labels' words it says so and goes on."""
    home, files = place["home"], sorted(place["images"].iterdir())
    build(place, home / "store", "--query", "maskclip", "--query-rank", 16, "--grid", "8x8")
    labels = ("mass", "lesion", "mass", "lesion")
    records = []
    for number, (file, label) in enumerate(zip(files, labels, strict=True)):
        with Image.open(file) as image:
            width, height = image.size
        box = [0.0, 0.0, width / 2, height]  # its left half
        records.append({"image": file.name, "patient": str(number), "label": label,
                        "boxes": [box]})  # fmt: skip
    regions = home / "regions.json"
    regions.write_text(json.dumps({"records": records}))
    asked = ("audit", "--store", home / "store", "--regions", regions, "--image-root",
             place["images"], "--json")  # fmt: skip
    silent = cache(*asked)
    assert "is not asked in words" in silent.stderr
    cache("text", "--teacher", NAME, "--weights", place["weights"], *TRAINED, "--store",
          home / "store", "--prompt", "mass", "--prompt", "lesion")  # fmt: skip
    opened = TargetStore.open(home / "store")
    found = json.loads(cache(*asked).stdout)["teachers"][opened.namespace.name]["rows"]
    maps = Stored(opened).maps(keys_of(place), ["mass", "lesion"]).reshape(4, 2, 8, 8)
    hits = []
    for number, file in enumerate(files):
        with Image.open(file) as image:
            width, height = image.size
        side = max(width, height)
        column = int(maps[number, number % 2].argmax()) % 8
        centre = (column + 0.5) / 8 * side - (side - width) / 2
        hits.append(centre < width / 2)
    assert found["query"]["pointing"]["value"] == pytest.approx(np.mean(hits))
    assert {"query, other words", "query, other patient"} <= set(found)
