"""`bmc-clip` from a small training checkpoint of its published layout.

`BMC_CLIP_CF.pt` is what open_clip's trainer writes of a CLIP on several devices: `state_dict` with
`module.` before every name of both towers. The evaluation beside it shares no code with the
teacher.
"""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory
from torch import Tensor
from typer.testing import CliRunner

from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.targets import TargetStore
from teacher_cache.cli import app
from teacher_cache.encoder import encode
from teacher_cache.teachers.registry import TEACHERS, load_teacher
from tests.fixtures.eager_vit import open_clip_vit
from tests.fixtures.images import image_folder
from tests.fixtures.present import present
from tests.fixtures.teacher_checkpoints import TINY_CLIP, hub_layout, spread

pytestmark = pytest.mark.integration


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Tensor]]:
    """The file, and the visual tensors that are in it."""
    small = {**TINY_CLIP, "quick_gelu": False}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-L-14", small)
    model = open_clip.create_model("ViT-L-14", pretrained=None)
    state = spread(model.state_dict())
    checkpoint: dict[str, Any] = {
        "epoch": 9,
        "name": "bmc",
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
    }
    path = tmp_path / "BMC_CLIP_CF.pt"
    torch.save(checkpoint, path)
    visual = {
        name.removeprefix("visual."): tensor
        for name, tensor in state.items()
        if name.startswith("visual.")
    }
    assert len(visual) < len(state)  # the text tower is in the file, and passed over
    return path, visual


def test_patches_and_attention(published: tuple[Path, dict[str, Tensor]]) -> None:
    path, visual = published
    teacher = load_teacher("bmc-clip", str(path.parent))
    assert (teacher.grid, teacher.architecture) == (Grid(4, 4), "ViT-L-14")  # no QuickGELU
    tag = open_clip.get_pretrained_cfg("ViT-L-14", "commonpool_xl_clip_s13b_b90k")
    assert teacher.preprocessing.mean == tag["mean"]
    assert teacher.preprocessing.std == tag["std"]
    assert teacher.preprocessing.interpolation == "bicubic"
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    tokens, attention = open_clip_vit(visual, pixels, heads=4, quick_gelu=False)
    found = encode(teacher, pixels)
    torch.testing.assert_close(found.tokens.double(), tokens, atol=1e-4, rtol=1e-4)
    looked = present(found.attention)
    torch.testing.assert_close(looked.double(), attention, atol=1e-4, rtol=1e-4)
    assert float(looked.std()) > 0.2 * float(looked.mean())


def test_a_store_by_command_from_the_hubs_folder(
    published: tuple[Path, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub_layout(tmp_path / "hub", "BIOMEDICA/BMC_CLIP_CF", "BMC_CLIP_CF.pt", published[0])
    image_folder(tmp_path / "images", 2)
    words = ["build", "--teacher", "bmc-clip", "--weights", "BIOMEDICA/BMC_CLIP_CF"]
    words += ["--images", str(tmp_path / "images"), "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(app, [*words, "--grid", "4x4"])
    assert done.exit_code == 0, done.output
    store = TargetStore.open(tmp_path / "store", teacher="bmc-clip")
    assert len(store) == 2
    assert store.namespace.provenance["licence"] == "MIT"


def test_the_list_is_true_of_the_library_and_weights_of_another_are_refused(
    tmp_path: Path,
) -> None:
    info, config = TEACHERS["bmc-clip"], open_clip.get_model_config("ViT-L-14")
    vision = present(config)["vision_cfg"]
    side = vision["image_size"] // vision["patch_size"]
    assert info.grid == f"{side}x{side} @ {vision['image_size']}"
    assert info.width == vision["width"]
    with pytest.raises(UserError, match=r"bmc-clip needs its weights: get hub BIOMEDICA/BMC_CLIP"):
        load_teacher("bmc-clip")
    torch.save({"state_dict": {"module.visual.x": torch.zeros(1)}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="the weights are not those of bmc-clip"):
        load_teacher("bmc-clip", str(tmp_path / "x.pt"))
