"""`timm:NAME --attention none`: E_v is the last stage's own output, seen in the model itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from typer.testing import CliRunner

from shared.errors import UserError
from shared.targets import TargetStore
from teacher_cache.cli import app
from teacher_cache.encoder import encode
from teacher_cache.teachers.registry import load_teacher
from tests.fixtures.images import image_folder
from tests.fixtures.teacher_checkpoints import spread
from tests.fixtures.tiny_teacher import TEACHER, tiny_weights

pytestmark = pytest.mark.integration


def _last_first(found: Tensor) -> Tensor:
    return found.flatten(1, 2)  # of (B, rows, columns, b)


def _channels_first(found: Tensor) -> Tensor:
    return found.flatten(2).transpose(1, 2)  # of (B, b, rows, columns)


def _without_register(found: Tensor) -> Tensor:
    return found[:, 1:]  # of (B, 1 + M, b)


# architecture: its last stage, how that orders a map, its grid and pixels
TOWERS: dict[str, tuple[str, Callable[[Tensor], Tensor], tuple[int, int]]] = {
    "swin_tiny_patch4_window7_224": ("layers.3", _last_first, (7, 224)),
    "test_convnext": ("stages.3", _channels_first, (5, 160)),
    "test_resnet": ("layer4", _channels_first, (5, 160)),
    "test_vit2": ("blocks.7", _without_register, (10, 160)),  # pools by a mean, no CLS token
}


def write(path: Path, architecture: str) -> Any:
    """Save random weights of a timm model as published, with its classifier; return the model."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, pretrained=False).eval()
    model.load_state_dict(
        {
            name: tensor if tensor.dtype == torch.long or "running_var" in name else drawn
            for (name, tensor), drawn in zip(
                model.state_dict().items(), spread(model.state_dict()).values(), strict=True
            )
        }
    )
    torch.save(model.state_dict(), path)
    return model


@pytest.mark.parametrize("architecture", TOWERS)
def test_patches_are_the_last_stages_own(architecture: str, tmp_path: Path) -> None:
    stage, ordered, (side, size) = TOWERS[architecture]
    model = write(tmp_path / "model.pt", architecture)
    weights = str(tmp_path / "model.pt")
    teacher = load_teacher(f"timm:{architecture}", weights, attention="none")
    assert (teacher.grid, teacher.preprocessing.size) == ((side, side), size)
    seen = {}
    model.get_submodule(stage).register_forward_hook(
        lambda module, args, output: seen.update(map=output)
    )
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.forward_features(pixels)
    found = encode(teacher, pixels)
    assert found.attention is None
    assert found.tokens.shape[:2] == (2, side * side)
    torch.testing.assert_close(found.tokens, ordered(seen["map"]), atol=1e-5, rtol=1e-5)
    assert float(found.tokens.std(1).mean()) > 1e-3  # patches differ


def test_swins_final_norm_is_what_follows(tmp_path: Path) -> None:
    """The place of each patch: normed, E_v is the map that Swin itself ends with."""
    model = write(tmp_path / "model.pt", "swin_tiny_patch4_window7_224")
    name = "timm:swin_tiny_patch4_window7_224"
    teacher = load_teacher(name, str(tmp_path / "model.pt"), attention="none")
    pixels = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        whole = model.forward_features(pixels)  # (1, 7, 7, b)
        normed = model.norm(encode(teacher, pixels).tokens)
    torch.testing.assert_close(normed.view(1, 7, 7, -1), whole, atol=1e-4, rtol=1e-4)


def test_a_plain_vit_is_the_same_teacher_without_its_attention(tmp_path: Path) -> None:
    weights = tiny_weights(tmp_path / "weights.safetensors")
    whole, alone = load_teacher(TEACHER, weights), load_teacher(TEACHER, weights, attention="none")
    unlike = {"model", "attention"}
    for field, value in whole._asdict().items():
        assert field in unlike or getattr(alone, field) == value
    pixels = torch.rand(2, 3, 160, 160)
    tokens = encode(whole, pixels).tokens
    torch.testing.assert_close(encode(alone, pixels).tokens, tokens, atol=1e-5, rtol=1e-5)


def test_a_store_of_a_convolution_tower_by_command(tmp_path: Path) -> None:
    write(tmp_path / "model.pt", "test_convnext")
    image_folder(tmp_path / "images", 3)
    named = {"--weights": "model.pt", "--images": "images", "--store": "store"}
    words = ["--teacher", "timm:test_convnext", "--grid", "10x10"]
    words += [word for key, name in named.items() for word in (key, str(tmp_path / name))]
    done = CliRunner().invoke(app, ["build", *words])
    assert isinstance(done.exception, UserError)
    assert "timm's test_convnext is a ConvNeXt" in str(done.exception)
    assert "--attention none" in str(done.exception)
    done = CliRunner().invoke(app, ["build", *words, "--attention", "none", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["encoded"] == 3
    store = TargetStore.open(tmp_path / "store")
    assert (store.identity.architecture, store.identity.attention) == ("test_convnext", "none")
    [first, *_] = [store[key] for key in store.keys()]  # noqa: SIM118
    assert first.similarity.shape == (100 * 99 // 2,)
    assert float(first.similarity.std()) > 1e-3


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("crossvit_9_240", "ends in a map of 14x14, which is no grid of equal patches"),
        ("vit_base_patch16_224_nothing", "timm knows no model"),
    ],
)
def test_what_has_no_grid(architecture: str, reason: str, tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=reason):
        load_teacher(f"timm:{architecture}", str(tmp_path / "model.pt"), attention="none")


def test_weights_of_another_model(tmp_path: Path) -> None:
    write(tmp_path / "model.pt", "test_resnet")
    with pytest.raises(UserError, match="the weights are not those of timm's test_convnext"):
        load_teacher("timm:test_convnext", str(tmp_path / "model.pt"), attention="none")
