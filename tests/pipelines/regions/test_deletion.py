"""Deletion and insertion: RISE's loop over pixels; scores by the towers' own models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import conv2d, normalize, pad
from typer.testing import CliRunner

from pipelines.regions.audit import audit
from pipelines.regions.cache import app
from pipelines.regions.deletion import DELETION, INSERTION, areas, blur, patch_of_pixels
from pipelines.regions.experts import OWN, PRIOR
from pipelines.regions.query.scoring import ASKED
from pipelines.regions.scorers import BY_IMAGE, BY_TEXT, RANDOM
from pipelines.regions.table import audit_lines
from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.imaging.images import parse_reference
from shared.imaging.keys import content_key
from shared.targets import TargetStore
from teacher_cache.pooled import has_text_space, image_vectors
from teacher_cache.stream import prepare
from teacher_cache.teachers.registry import load_teacher
from teacher_cache.teachers.trained import Trained
from tests.fixtures.teacher_checkpoints import use_tiny_architectures
from tests.fixtures.text_towers import BOTH, write_open_clip
from tests.fixtures.tiny_teacher import arguments, tiny_weights

SIDE, GRID = 24, Grid(4, 4)
NAME = "open_clip:ViT-B-16-quickgelu"
TRAINED = Trained((0.5,) * 3, (0.5,) * 3, "bicubic", True)


def rise(start, finish, saliency, score, step):
    """Change `step` pixels at a time, from the most salient on: RISE's `single_run` and `auc`."""
    order = np.argsort(-saliency.ravel(), kind="stable")
    picture, steps = start.reshape(3, -1).copy(), (saliency.size + step - 1) // step
    curve = []
    for i in range(steps + 1):
        curve.append(score(picture.reshape(start.shape)))
        some = order[step * i : step * (i + 1)]
        picture[:, some] = finish.reshape(3, -1)[:, some]
    return (sum(curve) - curve[0] / 2 - curve[-1] / 2) / (len(curve) - 1)


def published_blur(picture):
    """Convolve with a Gaussian of sigma 5 in 11 x 11 pixels, edges mirrored."""
    across = np.exp(-0.5 * (np.arange(-5, 6) / 5.0) ** 2)
    kernel = torch.from_numpy(np.outer(across, across) / across.sum() ** 2)
    wide = pad(torch.from_numpy(picture)[None], (6,) * 4, mode="reflect")
    wide[..., 0, :], wide[..., -1, :] = wide[..., 6, :], wide[..., -7, :]
    return conv2d(wide.transpose(0, 1), kernel[None, None]).transpose(0, 1)[0].numpy()


@pytest.mark.unit
def test_areas_are_those_of_the_published_loop_over_pixels() -> None:
    """A score that is not linear, in float64; one step is two patches of 36 pixels."""
    random = np.random.default_rng(0)
    picture = random.normal(size=(3, SIDE, SIDE))
    weights = random.normal(size=picture.shape)
    map_ = random.permutation(GRID.size) / 7.0

    def score(one):
        return float(np.tanh((one * weights).sum() / 20))

    def batch(pictures):
        return np.array([score(one.numpy()) for one in pictures])

    whole = np.ones(GRID.size, dtype=bool)
    found = areas(torch.from_numpy(picture), {"own": map_}, whole, GRID, batch, steps=8)["own"]
    saliency = np.kron(map_.reshape(GRID), np.ones((6, 6)))
    step = 2 * 36
    soft = blur(torch.from_numpy(picture)).numpy()
    expected = rise(picture, np.zeros_like(picture), saliency, score, step)
    assert found[DELETION] == pytest.approx(expected, abs=1e-12)
    expected = rise(soft, picture, saliency, score, step)
    assert found[INSERTION] == pytest.approx(expected, abs=1e-12)


@pytest.mark.unit
def test_the_blur_is_rise_s_at_its_side() -> None:
    """Away from the edges, where the published code pads with zeros and scipy mirrors."""
    picture = np.random.default_rng(1).normal(size=(3, 224, 224))
    own = blur(torch.from_numpy(picture)).numpy()
    inner = (slice(None), slice(6, -6), slice(6, -6))
    assert own[inner] == pytest.approx(published_blur(picture)[:, 1:-1, 1:-1][inner], abs=1e-12)


@pytest.mark.unit
def test_padding_stays_and_equal_patches_fall_in_a_random_order() -> None:
    picture = torch.ones(3, SIDE, SIDE, dtype=torch.float64)
    visible = np.arange(GRID.size) < 12
    seen: list[torch.Tensor] = []

    def score(pictures):
        seen.extend(pictures)
        return pictures.mean(dim=(1, 2, 3)).numpy()

    even = np.ones(GRID.size)
    orders = [areas(picture, {"even": even}, visible, GRID, score, seed)["even"] for seed in (0, 0)]
    assert orders[0] == orders[1]
    below = torch.from_numpy(patch_of_pixels(SIDE, GRID) >= 12)
    assert all((one[:, below] == 1).all() for one in seen)
    # The mean falls from 1 to 4 of 16 patches along a straight line.
    assert orders[0][DELETION] == pytest.approx((1 + 4 / 16) / 2)
    inside = patch_of_pixels(SIDE, GRID)
    first = [
        int(np.flatnonzero((one[0] == 0).numpy().ravel())[0]) for one in seen if one.min() == 0
    ]
    assert inside.ravel()[first[0]] < 12
    few = areas(picture, {"even": even}, np.arange(GRID.size) == 5, GRID, score)["even"]
    assert few[DELETION] == pytest.approx((1 + 15 / 16) / 2)


@pytest.mark.unit
def test_a_grid_that_does_not_divide_the_side_takes_each_pixel_s_middle() -> None:
    place = patch_of_pixels(10, Grid(4, 4))
    middles = (np.arange(10) + 0.5) / 10
    expected = np.searchsorted([0.25, 0.5, 0.75], middles, side="right")
    assert (place == expected[:, None] * 4 + expected).all()


def boxes(folder: Path, labels: tuple[str, ...], count: int = 6) -> Path:
    """Write images of noise with a smooth square, and their regions under labels in turn."""
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        x, y = (int(one) for one in random.integers(0, 24, 2))
        pixels = random.integers(0, 255, (48, 48), dtype=np.uint8)
        pixels[y : y + 24, x : x + 24] = 200
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        label = labels[number % len(labels)]
        rows.append({"image": f"images/{number}.png", "boxes": [[x, y, 24, 24]], "label": label})
    file = folder / "regions.json"
    file.write_text(json.dumps({"records": rows}))
    return file


def cache(*args: object) -> Any:
    result = CliRunner().invoke(app, list(map(str, args)))
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.integration
def test_without_a_text_space_the_whole_image_is_the_score(tmp_path: Path) -> None:
    """E_a's areas from timm's own pooled features, picture by picture."""
    import timm
    from safetensors.torch import load_file

    regions = boxes(tmp_path, ("square",))
    weights = tiny_weights(tmp_path / "w.safetensors")
    cache(*arguments(tmp_path / "images", tmp_path / "store", weights))
    command = ("audit", "--store", tmp_path / "store", "--regions", regions, "--weights", weights)
    found = json.loads(cache(*command, "--deletion", 4, "--device", "cpu", "--json").stdout)
    [audited] = found["teachers"].values()
    assert audited["deletion_against"] == BY_IMAGE
    rows = audited["rows"]
    assert {row for row, scores in rows.items() if DELETION in scores} == {OWN, PRIOR, RANDOM}
    assert rows[OWN][DELETION]["n"] == rows[RANDOM][INSERTION]["n"] == 4
    pairs = {(test["a"], test["b"], test["score"]) for test in audited["tests"]}
    assert {(OWN, RANDOM, DELETION), (OWN, PRIOR, INSERTION), (PRIOR, RANDOM, DELETION)} <= pairs
    assert audited["gate"] is None
    lines = list(audit_lines(found))
    assert any("cosine with the whole image" in line for line in lines)
    assert max(map(len, lines)) <= 80

    model = timm.create_model("test_vit", pretrained=False, num_classes=0).eval()
    model.load_state_dict(load_file(weights))
    store = TargetStore.open(tmp_path / "store")
    every = cache(*command, "--deletion", 6, "--device", "cpu", "--json").stdout
    [whole] = json.loads(every)["teachers"].values()
    assert whole["rows"][OWN][DELETION]["n"] == 6
    expected = {DELETION: [], INSERTION: []}
    for file in sorted((tmp_path / "images").iterdir()):
        pixels = prepare(
            parse_reference(str(file)), store.identity.preprocessing, store.identity.geometry
        )[0]

        def score(one: np.ndarray, pixels: torch.Tensor = pixels) -> float:
            with torch.no_grad():
                a, b = normalize(model(torch.stack([torch.from_numpy(one), pixels])), dim=-1)
            return float(a @ b)

        map_ = store[content_key(file)].attention.astype(np.float64)
        # 25 patches in 10 steps: 2 or 3 of them, so the curve is made here by shares.
        ranks = (-map_).argsort().argsort()[patch_of_pixels(pixels.shape[-1], Grid(5, 5))]
        counts = np.rint(np.linspace(0, 25, 11)).astype(int)
        image, soft = pixels.numpy(), blur(pixels).numpy()
        for name, start, end in ((DELETION, image, np.zeros_like(image)), (INSERTION, soft, image)):
            curve = [score(np.where(ranks < count, end, start)) for count in counts]
            expected[name].append(np.trapezoid(curve, counts / 25))
    for name, values in expected.items():
        assert whole["rows"][OWN][name]["value"] == pytest.approx(np.mean(values), abs=1e-5)


@pytest.mark.integration
def test_missing_images_are_an_error_with_the_way_out(tmp_path: Path) -> None:
    regions = boxes(tmp_path, ("square",))
    weights = tiny_weights(tmp_path / "w.safetensors")
    cache(*arguments(tmp_path / "images", tmp_path / "store", weights))
    document = json.loads(regions.read_text())
    for row in document["records"]:
        row |= {"key": content_key(tmp_path / row["image"]).hex(), "size": [48, 48]}
    regions.write_text(json.dumps(document))
    (tmp_path / "images").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="is not there; pass its folder as --image-root"):
        audit(tmp_path / "store", regions, weights=weights, deletion=3)


@pytest.mark.integration
def test_with_both_towers_the_label_s_text_is_the_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is asked: open_clip's own embeddings of pictures and label give its areas."""
    import open_clip
    from open_clip import factory

    use_tiny_architectures(monkeypatch)
    architecture = NAME.partition(":")[2]
    monkeypatch.setitem(factory._MODEL_CONFIGS, architecture, {**BOTH, "quick_gelu": True})
    model = write_open_clip(tmp_path / "clip.pt")
    regions = boxes(tmp_path, ("opacity in the left lung", "opacity in the right lung"))
    said = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--interpolation", "bicubic")
    cache(
        "build", "--teacher", NAME, "--weights", tmp_path / "clip.pt", *said, "--quick-gelu",
        "--images", tmp_path / "images", "--store", tmp_path / "store", "--grid", "4x4",
        "--query", "grad-eclip", "--query-rank", 24,
    )  # fmt: skip
    command = ("audit", "--store", tmp_path / "store", "--regions", regions)
    line = (*command, "--weights", tmp_path / "clip.pt", "--deletion", 6, "--device", "cpu")
    found = json.loads(cache(*line, "--json").stdout)
    [audited] = found["teachers"].values()
    assert audited["deletion_against"] == BY_TEXT
    assert audited["rows"][ASKED][DELETION]["n"] == 6
    assert audited["gate"]["of"] == ASKED
    assert any("may be a default" in one for one in audit_lines(found))

    store = TargetStore.open(tmp_path / "store")
    words = open_clip.get_tokenizer(architecture)
    expected = {DELETION: [], INSERTION: []}
    for row in json.loads(regions.read_text())["records"]:
        file = tmp_path / row["image"]
        pixels = prepare(
            parse_reference(str(file)), store.identity.preprocessing, store.identity.geometry
        )[0]
        place = patch_of_pixels(pixels.shape[-1], Grid(4, 4))
        map_ = store[content_key(file)].attention.astype(np.float64)
        ranks = torch.from_numpy((-map_).argsort().argsort()[place])
        counts = np.rint(np.linspace(0, 16, 11)).astype(int)
        ends = {DELETION: (pixels, torch.zeros_like(pixels)), INSERTION: (blur(pixels), pixels)}
        with torch.no_grad():
            text = normalize(model.encode_text(words([row["label"]])), dim=-1)[0]
            for name, (start, end) in ends.items():
                pictures = torch.stack([torch.where(ranks < n, end, start) for n in counts])
                curve = normalize(model.encode_image(pictures), dim=-1) @ text
                expected[name].append(np.trapezoid(curve.numpy(), counts / 16))
    for name, values in expected.items():
        assert audited["rows"][OWN][name]["value"] == pytest.approx(np.mean(values), abs=1e-5)


@pytest.mark.integration
def test_vectors_are_the_models_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's image embedding; timm's maps as the mean of their places."""
    import timm
    from open_clip import factory
    from safetensors.torch import save_file

    use_tiny_architectures(monkeypatch)
    architecture = NAME.partition(":")[2]
    monkeypatch.setitem(factory._MODEL_CONFIGS, architecture, {**BOTH, "quick_gelu": True})
    model = write_open_clip(tmp_path / "clip.pt")
    teacher = load_teacher(NAME, str(tmp_path / "clip.pt"), Grid(4, 4), TRAINED, "pooled")
    size = teacher.preprocessing.size
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = normalize(model.encode_image(pixels), dim=-1)
    assert has_text_space(teacher)
    torch.testing.assert_close(image_vectors(teacher, pixels), expected, atol=1e-5, rtol=0)
    convolutions = timm.create_model("test_convnext", pretrained=False, num_classes=0).eval()
    save_file(convolutions.state_dict(), tmp_path / "map.safetensors")
    said = Trained((0.5,) * 3, (0.5,) * 3, "bicubic")
    file = str(tmp_path / "map.safetensors")
    teacher = load_teacher("timm:test_convnext", file, None, said, "none")
    size = teacher.preprocessing.size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        [places] = convolutions.forward_intermediates(
            pixels, indices=1, norm=False, intermediates_only=True
        )
    expected = normalize(places.mean(dim=(2, 3)), dim=-1)
    assert not has_text_space(teacher)
    torch.testing.assert_close(image_vectors(teacher, pixels), expected, atol=1e-5, rtol=0)
