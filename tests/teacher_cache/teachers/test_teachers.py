"""Weights as published, by file, folder and hub id.

What is missing, foreign, broken or dangerous is one clear line.
"""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from shared.errors import UserError
from teacher_cache.cli import app
from teacher_cache.teachers import listing
from teacher_cache.teachers.checkpoints import find_weights, read_weights, weights_hash
from teacher_cache.teachers.open_clip_models import open_clip_config
from teacher_cache.teachers.registry import OPEN_FAMILIES, TEACHERS, load_teacher
from teacher_cache.teachers.timm_maps import Map, map_of
from teacher_cache.teachers.timm_models import refusal, without_values
from tests.fixtures.teacher_checkpoints import (
    TINY_TIMM,
    biomedclip_state,
    hub_layout,
    open_clip_visual,
    timm_trunk,
    use_tiny_architectures,
    write_unimed,
)

pytestmark = pytest.mark.integration
BIOMED = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"


@pytest.fixture
def tiny(monkeypatch):
    use_tiny_architectures(monkeypatch)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub cache of our own, off-line."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def test_unimed_by_file_folder_and_hub_id(tiny, tmp_path, hub):
    folder = tmp_path / "weights"
    folder.mkdir()
    file = write_unimed(folder / "unimed_clip_vit_b16.pt", open_clip_visual())
    (folder / "README.md").write_text("not weights")
    by_file, by_folder = load_teacher("unimed-b", str(file)), load_teacher("unimed-b", str(folder))
    hub_layout(hub, "someone/unimed", "unimed_clip_vit_b16.pt", file)
    by_hub = load_teacher("unimed-b", "someone/unimed")
    assert by_file.weights == by_folder.weights == by_hub.weights
    assert (by_file.grid, by_file.preprocessing.size, by_file.licence) == (
        (4, 4),
        64,
        "CC BY-NC 4.0: no commercial use",
    )
    assert not by_file.model.training
    assert not any(parameter.requires_grad for parameter in by_file.model.parameters())


def test_biomedclip_by_file_folder_and_hub_id(tiny, tmp_path, hub):
    file = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(biomedclip_state(timm_trunk()), file)
    hub_layout(hub, BIOMED, "open_clip_pytorch_model.bin", file)
    teachers = [load_teacher("biomedclip", where) for where in (str(file), str(tmp_path), BIOMED)]
    assert len({teacher.weights for teacher in teachers}) == 1
    assert teachers[0].licence == "MIT; its authors intend it for research only"
    assert teachers[0].preprocessing.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))


@pytest.mark.parametrize("form", ["safetensors", "bare names", "with visual."])
def test_open_clip_models(tiny, tmp_path, form):
    visual = open_clip_visual()
    named = (
        visual
        if form == "bare names"
        else {f"visual.{name}": tensor for name, tensor in visual.items()}
    )
    file = tmp_path / ("model.safetensors" if form == "safetensors" else "model.pt")
    save_file(named, file) if form == "safetensors" else torch.save(named, file)
    teacher = load_teacher("open_clip:ViT-B-16-quickgelu", str(file))
    assert teacher.weights == weights_hash(visual)
    assert teacher.name == "open_clip:ViT-B-16-quickgelu"


def test_timm_models_leave_the_classifier_out(tmp_path):
    trunk = timm_trunk()
    file = tmp_path / "model.safetensors"
    save_file(trunk | {"head.weight": torch.zeros(1000, 64), "head.bias": torch.zeros(1000)}, file)
    teacher = load_teacher(f"timm:{TINY_TIMM}", str(file))
    assert teacher.weights == weights_hash(trunk)
    assert (teacher.grid, teacher.preprocessing.size) == ((10, 10), 160)


def test_the_hash_is_of_the_tensors_not_of_the_file(tiny, tmp_path):
    visual = open_clip_visual()
    first = load_teacher("unimed-b", str(write_unimed(tmp_path / "a.pt", visual)))
    bare = load_teacher(
        "unimed-b", str(write_unimed(tmp_path / "b.pt", visual, wrapper="", optimizer=False))
    )
    backwards = write_unimed(
        tmp_path / "c.pt", dict(reversed(visual.items())), wrapper="module._orig_mod."
    )
    assert first.weights == bare.weights == load_teacher("unimed-b", str(backwards)).weights
    visual["proj"][0, 0] += 1e-3
    assert (
        load_teacher("unimed-b", str(write_unimed(tmp_path / "d.pt", visual))).weights
        != first.weights
    )


def test_hash_vector():
    """sha256 over name, 0, dtype, 0, shape, 0, bytes; written out here once by hand."""
    import hashlib

    tensors = {"b": torch.tensor([1, 2], dtype=torch.int16), "a": torch.tensor([[0.5]])}
    text = (
        b"a\0torch.float32\0(1, 1)\0" + b"\0\0\0\x3f" + b"b\0torch.int16\0(2,)\0" + b"\x01\0\x02\0"
    )
    assert weights_hash(tensors) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("name", ["unimed-l", "unimed-b", "biomedclip"])
def test_missing_weights_say_where_they_are_and_the_flag(name):
    with pytest.raises(UserError) as caught:
        load_teacher(name)
    message = str(caught.value)
    assert "--weights" in message
    assert ("UniMed-CLIP" if name != "biomedclip" else BIOMED) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("/nowhere/model.pt", "no weights at /nowhere/model.pt"),
        ("model.pt", "a file, a folder or a hub id"),
        ("./a/b.pt", "a file, a folder or a hub id"),
        ("someone/absent", "download the file and pass its path as --weights"),
    ],
)
def test_weights_that_are_not_there(tiny, hub, weights, message):
    with pytest.raises(UserError, match=message):
        load_teacher("biomedclip", weights)


def test_a_folder_must_hold_one_candidate(tmp_path):
    with pytest.raises(UserError, match="found none"):
        find_weights(str(tmp_path))
    for name in ("a.pt", "b.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"a\.pt, b\.safetensors"):
        find_weights(str(tmp_path))
    assert find_weights(str(tmp_path), ["b.safetensors"]).name == "b.safetensors"


def test_other_models_weights_are_told_by_name(tiny, tmp_path):
    visual = open_clip_visual()
    file = write_unimed(tmp_path / "a.pt", visual)
    with pytest.raises(
        UserError, match=r"no tensor is called trunk\.\*|no tensor is called visual"
    ):
        load_teacher("biomedclip", str(file))
    torch.save(biomedclip_state(timm_trunk()), tmp_path / "b.bin")
    with pytest.raises(UserError, match="lacks class_embedding"):
        load_teacher("unimed-b", str(tmp_path / "b.bin"))
    short = {name: tensor for name, tensor in visual.items() if name != "ln_post.bias"}
    with pytest.raises(UserError, match=r"lacks ln_post\.bias and 0 more"):
        load_teacher("unimed-b", str(write_unimed(tmp_path / "c.pt", short)))
    wide = visual | {"proj": torch.zeros(64, 99)}
    with pytest.raises(UserError, match=r"proj of shape \(64, 99\), not \(64, 24\)"):
        load_teacher("unimed-b", str(write_unimed(tmp_path / "d.pt", wide)))
    no_head = {k: v for k, v in biomedclip_state(timm_trunk()).items() if "head" not in k}
    torch.save(no_head, tmp_path / "e.bin")
    with pytest.raises(UserError, match=r"visual\.head\.proj\.weight"):
        load_teacher("biomedclip", str(tmp_path / "e.bin"))


class Exploit:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize(
    "kind", ["torch", "pickle", "inside", "truncated", "text", "list", "safetensors"]
)
def test_files_that_would_run_code_or_are_broken(tiny, tmp_path, kind):
    file = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pt")
    if kind == "torch":
        torch.save(Exploit(), file)
    elif kind == "inside":
        torch.save({"state_dict": open_clip_visual(), "args": Exploit()}, file)
    elif kind == "list":
        torch.save([torch.zeros(3)], file)
    elif kind == "truncated":
        write_unimed(file, open_clip_visual())
        file.write_bytes(file.read_bytes()[:5000])
    else:
        file.write_bytes(pickle.dumps(Exploit()) if kind == "pickle" else b"not weights" * 50)
    with pytest.raises(UserError) as caught:
        load_teacher("unimed-b", str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "architecture",
    ["vit_small_patch16_dinov3", "cait_xxs24_224", "test_vit2", "resnet18", "test_convnext"],
)
def test_timm_models_whose_attention_is_another_are_refused(monkeypatch, architecture):
    import timm

    create = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, **options: create(name, **{**options, "pretrained": False}),
    )
    with pytest.raises(UserError, match="not a plain ViT with a CLS token"):
        load_teacher(f"timm:{architecture}")


@pytest.mark.parametrize("architecture", ["RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32"])
def test_open_clip_models_without_a_plain_vit_are_refused(tmp_path, architecture):
    torch.save({"visual.x": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="not a plain ViT"):
        load_teacher(f"open_clip:{architecture}", str(tmp_path / "model.pt"))


REFUSED = {  # what is refused: a part of the reason, and the teachers that are named instead
    "timm:swin_tiny_patch4_window7_224": (
        "is a SwinTransformer, not a plain ViT",
        ["timm:swin_tiny_patch4_window7_224 --attention none", "timm:vit_base_patch16_224"],
    ),
    "timm:eva02_tiny_patch14_224": (
        "is a Eva, not a plain ViT",
        ["timm:eva02_tiny_patch14_224 --attention none", "timm:vit_base_patch16_224"],
    ),
    "timm:vit_base_patch16_siglip_224": (
        "has no CLS token, from whose attention E_a is read",
        ["timm:vit_base_patch16_siglip_224 --attention none", "timm:vit_base_patch16_224"],
    ),
    "open_clip:RN50": (
        "not a plain ViT with a CLS token, from whose attention",
        ["open_clip:ViT-B-16", "unimed-b", "biomedclip"],
    ),
    "open_clip:coca_ViT-B-32": (
        "pools by queries or attends in another way",
        ["open_clip:ViT-B-16", "unimed-b", "biomedclip"],
    ),
    "open_clip:ViT-B-16-SigLIP": (
        "wraps timm's vit_base_patch16_siglip_224, which has no CLS token",
        ["timm:vit_base_patch16_siglip_224 --attention none", "timm:vit_base_patch16_224"],
    ),
    "open_clip:convnext_base": (
        "wraps timm's convnext_base, which is a ConvNeXt",
        ["timm:convnext_base --attention none", "timm:vit_base_patch16_224"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_its_reason_and_teachers_that_would_do(name, tmp_path):
    reason, instead = REFUSED[name]
    torch.save({"visual.x": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(UserError) as caught:
        load_teacher(name, str(tmp_path / "model.pt"))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    for teacher in instead:
        assert teacher in str(caught.value)
        _would_do(teacher)


def _would_do(teacher):
    """Hold a suggestion to what loading accepts, without any weights."""
    name, alone, _ = teacher.partition(" --attention none")
    family, _, architecture = name.partition(":")
    if family == "open_clip":
        assert open_clip_config(architecture)
    elif family == "timm" and alone:
        assert isinstance(map_of(without_values(architecture)), Map)
    elif family == "timm":
        assert refusal(architecture) == ""
    else:
        assert name in TEACHERS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unimed-x", "did you mean unimed-"),
        ("nothing like it", "`cache teachers` lists them"),
        ("open_clip:", "no teacher is named"),
        ("open_clip:ViT-Z-99", "open_clip knows no model"),
        ("timm:vit_nothing", "timm knows no model"),
        ("open_clip:ViT-B-16", "name a tag"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UserError, match=message):
        load_teacher(name)


def test_weights_for_the_teacher_that_brings_its_own():
    with pytest.raises(UserError, match=r"no ONNX file at nowhere\.onnx: .* leave --weights out"):
        load_teacher("dinov2-small", "nowhere.onnx")


@pytest.mark.parametrize("name", ["timm:test_vit", "open_clip:ViT-B-16/openai"])
def test_a_registry_that_cannot_be_reached_is_one_line(hub, name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="pass --weights FILE") as caught:
        load_teacher(name)
    assert "\n" not in str(caught.value)


def test_every_built_in_teacher_says_its_source_and_licence():
    for info in (*TEACHERS.values(), *OPEN_FAMILIES):
        assert all(info[:4])
    for info in TEACHERS.values():
        assert None not in info
    named = {"unimed-l", "unimed-b", "biomedclip", "bmc-clip", "dinov2-small"}
    assert set(TEACHERS) == named | {"rad-dino", "medsiglip", "dinov3", "c-radio-v4"}


def test_the_page_lists_the_registry():
    page = (Path(__file__).parents[3] / "docs" / "teachers.md").read_text(encoding="utf-8")
    assert listing.page() in page, "paste what python -m teacher_cache.teachers.listing prints"
    rows = [line.strip("| ").split(" | ") for line in page.split("\n") if line.startswith("| ")]
    named = {row[0]: row[1:] for row in rows}
    assert named["medsiglip"] == [
        "32x32 @ 448", "1152", "SigLIP", "yes", TEACHERS["medsiglip"].licence
    ]  # fmt: skip
    assert set(TEACHERS) <= set(named)


def test_grids_and_widths_are_those_of_the_libraries_own_models():
    """What the list says, against open_clip's configurations and timm's models."""
    import open_clip
    import timm

    for name in ("unimed-l", "unimed-b"):
        info = TEACHERS[name]
        vision = open_clip.get_model_config(info.architecture)["vision_cfg"]
        side = vision["image_size"] // vision["patch_size"]
        assert info.grid == f"{side}x{side} @ {vision['image_size']}"
        assert info.width == vision["width"]
    for name in ("biomedclip", "dinov2-small"):
        info = TEACHERS[name]
        with torch.device("meta"):
            model = timm.create_model(info.architecture)
        assert info.width == model.num_features
        rows, columns = model.patch_embed.grid_size
        size = model.patch_embed.img_size[0]
        assert info.grid in ("any square", f"{rows}x{columns} @ {size}")


def test_the_list_by_command():
    printed = CliRunner().invoke(app, ["teachers"]).output.split("\n")
    assert printed[0].split()[:5] == ["teacher", "grid", "width", "text", "tower"]
    (line,) = [line for line in printed if line.startswith("dinov3 ")]
    assert line.split()[1:9] == ["14x14", "@", "224", "1024", "no", "yes", "DINOv3", "licence"]
    rows = json.loads(CliRunner().invoke(app, ["teachers", "--json"]).output)["teachers"]
    (row,) = [row for row in rows if row["name"] == "biomedclip"]
    assert (row["grid"], row["width"], row["text_tower"], row["gated"]) == (
        "14x14 @ 224", 768, "PubMedBERT", False
    )  # fmt: skip
    (family,) = [row for row in rows if row["name"] == "timm:NAME"]
    assert family["grid"] is family["width"] is family["gated"] is None


def test_training_checkpoints_keep_only_their_state_dict(tiny, tmp_path):
    tensors = read_weights(write_unimed(tmp_path / "a.pt", open_clip_visual()))
    assert not any(name.startswith("module.") for name in tensors)
    assert {name.split(".")[0] for name in tensors} == {"visual", "text_encoder", "logit_scale"}
