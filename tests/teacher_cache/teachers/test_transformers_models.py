"""Towers in transformers' format against the models' own eager attention and hidden states."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.targets import TargetStore
from teacher_cache.cli import app
from teacher_cache.encoder import encode
from teacher_cache.teachers.registry import load_teacher
from tests.fixtures.dataset_replicas import write_image
from tests.fixtures.teacher_checkpoints import spread

pytestmark = pytest.mark.integration

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 64,
    "patch_size": 16,
}
REGISTERS = {"num_register_tokens": 4}
RADIO = {
    "num_cls_tokens": 3,
    "num_register_tokens": 7,
    "summary_idxs": [0, 1, 2],
    "norm_mean": [0.5, 0.4, 0.3],
    "norm_std": [0.2, 0.25, 0.3],
}
# layout: class, further sizes, prefix tokens before the patches
TOWERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "dinov2": ("Dinov2Model", {"mlp_ratio": 2}, 1),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", {"mlp_ratio": 2, **REGISTERS}, 5),
    "dinov3_vit": ("DINOv3ViTModel", REGISTERS, 5),
    "radio": ("RadioModel", RADIO, 10),
    "siglip_vision_model": ("SiglipVisionModel", {}, 0),
    "clip_vision_model": ("CLIPVisionModel", {}, 1),
    "vit": ("ViTModel", {}, 1),
}
OWN = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "resample": 3}


def write_tower(folder: Path, layout: str, **settings: Any) -> Any:
    """Save a small random tower with its preprocessor; return it, in eager attention."""
    name, further, _ = TOWERS[layout]
    chosen = getattr(transformers, name)
    config = chosen.config_class(**SIZES | further | settings)
    model = chosen(config).eval()
    model.load_state_dict(
        {
            name: tensor if tensor.dtype == torch.long else drawn
            for (name, tensor), drawn in zip(
                model.state_dict().items(), spread(model.state_dict()).values(), strict=True
            )
        }
    )
    if layout == "radio":
        model.input_conditioner.norm_mean.copy_(torch.tensor(RADIO["norm_mean"]).view(-1, 1, 1))
        model.input_conditioner.norm_std.copy_(torch.tensor(RADIO["norm_std"]).view(-1, 1, 1))
    model.save_pretrained(folder)
    sized = OWN | {"size": {"height": 64, "width": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(sized))
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("layout", TOWERS)
def test_tokens_and_attention_are_the_models_own(layout: str, tmp_path: Path) -> None:
    model = write_tower(tmp_path / "tower", layout)
    prefix = TOWERS[layout][2]
    teacher = load_teacher(f"hf:{tmp_path / 'tower'}/")
    assert (teacher.name, teacher.grid) == ("hf:tower", Grid(4, 4))
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    seen: dict[str, torch.Tensor] = {}
    if layout == "siglip_vision_model":  # torch's own module says what the probe looks at
        head = model.head.attention
        head.register_forward_pre_hook(
            lambda module, args: seen.update(probe=args[0], tokens=args[1])
        )
    with torch.no_grad():
        given = pixels
        if layout == "radio":  # it normalises inside, the teacher's pixels come normalised
            mean = torch.tensor(RADIO["norm_mean"]).view(1, 3, 1, 1)
            given = pixels * torch.tensor(RADIO["norm_std"]).view(1, 3, 1, 1) + mean
        whole = model(given, output_hidden_states=True, output_attentions=True)
        if layout == "siglip_vision_model":
            _, attention = head(seen["probe"], seen["tokens"], seen["tokens"])
            attention = attention[:, 0]
        else:
            attention = whole.attentions[-1].mean(1)[:, 0, prefix:]
    found = encode(teacher, pixels)
    tokens = whole.hidden_states[-1][:, prefix:]
    torch.testing.assert_close(found.tokens, tokens, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.attention, attention, atol=1e-5, rtol=0)
    assert float(attention.std() / attention.mean()) > 0.05  # not uniform


def test_a_siglip_with_its_text_tower(tmp_path: Path) -> None:
    """MedSigLIP's folder holds both towers; the text tower's weights are left out."""
    vision = SIZES | {"projection_dim": 16}
    text = SIZES | {"vocab_size": 64, "max_position_embeddings": 8, "projection_size": 32}
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    model = transformers.SiglipModel(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({**OWN, "resample": 2, "size": {"height": 64, "width": 64}})
    )
    teacher = load_teacher("medsiglip", str(tmp_path))
    assert teacher.preprocessing.interpolation == "bilinear"
    assert teacher.architecture == "SiglipVisionModel, 4x4 @ 64"
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        whole = model.vision_model(pixels, output_hidden_states=True)
    torch.testing.assert_close(
        encode(teacher, pixels).tokens, whole.hidden_states[-1], atol=1e-4, rtol=0
    )


def test_a_store_by_command(tmp_path: Path) -> None:
    write_tower(tmp_path / "tower", "dinov2")
    for number in range(3):
        write_image(tmp_path / "images" / f"{number}.png", number)
    words = ["build", "--teacher", "rad-dino", "--weights", str(tmp_path / "tower")]
    words += ["--images", str(tmp_path / "images"), "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(app, [*words, "--grid", "4x4"])
    assert done.exit_code == 0, done.output
    store = TargetStore.open(str(tmp_path / "store"), teacher="rad-dino")
    assert len(store) == 3


@pytest.mark.parametrize(
    ("layout", "change", "said"),
    [
        ("dinov2", {"model_type": "swin"}, "a swin has no attention that pools its patches.*dino"),
        ("dinov2", {"model_type": "owlvit"}, "no reader for the layout owlvit; there .* rad-dino"),
        ("dinov2", {"num_hidden_layers": 4}, "weights of Dinov2Model are missing or misshapen"),
        ("dinov2", {"hidden_size": 16}, "weights of Dinov2Model are missing or misshapen|usable"),
        ("siglip_vision_model", {"vision_use_head": False}, "no pooling head.*none.*medsiglip has"),
    ],
)
def test_what_is_no_teacher(layout: str, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_tower(tmp_path / "tower", layout)
    path = tmp_path / "tower" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said):
        load_teacher(f"hf:{tmp_path / 'tower'}")


def test_a_siglip_without_head_gives_similarities_alone(tmp_path: Path) -> None:
    model = write_tower(tmp_path / "tower", "siglip_vision_model", vision_use_head=False)
    teacher = load_teacher(f"hf:{tmp_path / 'tower'}", attention="none")
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        whole = model(pixels, output_hidden_states=True)
    found = encode(teacher, pixels)
    assert found.attention is None
    torch.testing.assert_close(found.tokens, whole.hidden_states[-1], atol=1e-4, rtol=0)


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"did not give nobody/rad-dino \(it does not answer"):
        load_teacher("rad-dino", "nobody/rad-dino")


def test_settings_come_from_the_folder_or_are_asked_for(tmp_path: Path) -> None:
    write_tower(tmp_path / "tower", "dinov2")
    (tmp_path / "tower" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="nothing says with which mean, std, interpolation"):
        load_teacher(f"hf:{tmp_path / 'tower'}")
    with pytest.raises(UserError, match=r"no folder at .*nowhere"):
        load_teacher("hf:./nowhere")
    write_tower(tmp_path / "other", "vit")
    with pytest.raises(UserError, match="are a ViTModel, and rad-dino is a Dinov2Model"):
        load_teacher("rad-dino", str(tmp_path / "other"))
