"""BiomedCLIP: `visual.trunk.*` is a timm ViT-B/16, `visual.head.proj.weight` its projection."""

from torch import Tensor

from shared.errors import UserError
from shared.imaging.grid import Grid
from teacher_cache.teachers.base import Teacher, TeacherInfo, need_weights
from teacher_cache.teachers.checkpoints import (
    find_weights,
    read_weights,
    tensors_below,
    weights_hash,
)
from teacher_cache.teachers.timm_models import filled_timm, timm_teacher
from teacher_cache.teachers.trained import OPEN_CLIP

BIOMEDCLIP = TeacherInfo(
    "biomedclip",
    "vit_base_patch16_224",
    "hub microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 (open_clip_pytorch_model.bin)",
    "MIT; its authors intend it for research only",
    "14x14 @ 224",
    768,
    "PubMedBERT",
    gated=False,
)


def load_biomedclip(info: TeacherInfo, weights: str | None, grid: Grid | None = None) -> Teacher:
    """Load it from its published file, a folder with it, or a hub id; its grid is its own."""
    path = find_weights(
        need_weights(info, weights), ("open_clip_pytorch_model.bin", "open_clip_model.safetensors")
    )
    tensors = tensors_below(read_weights(path), "visual.", info.name)
    trunk = filled_timm(info.architecture, tensors_below(tensors, "trunk.", info.name))
    projection = tensors.get("head.proj.weight")
    if projection is None:
        raise UserError(
            f"the weights are not those of {info.name}: the file lacks visual.head.proj.weight"
        )
    hashed = weights_hash(
        {name: tensor for name, tensor in tensors.items() if name.startswith(("trunk.", "head."))}
    )
    norm = trunk.get_submodule("norm")

    def project(tokens: Tensor) -> Tensor:
        normed: Tensor = norm(tokens)
        return normed @ projection.to(normed).T

    teacher = timm_teacher(info, trunk, OPEN_CLIP, hashed, project)
    return teacher._replace(projection=projection.T)
