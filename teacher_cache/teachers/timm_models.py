"""Any plain ViT with a CLS token of timm: `timm:NAME`, and the trunks of teachers built on timm."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypedDict, cast

from torch import Tensor, nn

from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.targets import Preprocessing
from teacher_cache.teachers.base import Teacher, TeacherInfo, downloaded
from teacher_cache.teachers.checkpoints import (
    find_weights,
    load_strictly,
    read_weights,
    weights_hash,
)

Colours = tuple[float, float, float]

TIMM = TeacherInfo(
    "timm:NAME",
    "any timm ViT with a CLS token",
    "timm's registry, or --weights",
    "see the weights",
)


class PretrainedConfig(TypedDict):
    """What is read of the configuration that timm keeps with a model."""

    mean: Sequence[float]
    std: Sequence[float]


class PatchEmbedding(Protocol):
    """What is read of timm's `PatchEmbed`."""

    grid_size: tuple[int, int]
    img_size: tuple[int, int]


class TimmViT(Protocol):
    """What is read of timm's `VisionTransformer`."""

    blocks: Sequence[nn.Module]
    cls_token: Tensor | None
    patch_embed: PatchEmbedding
    pretrained_cfg: PretrainedConfig


def load_timm(name: str, architecture: str, weights: str | None) -> Teacher:
    """Load timm's `architecture`, with its registry's weights where none are given."""
    import timm

    if not timm.is_model(architecture):
        raise UserError(f"timm knows no model {architecture!r}; `timm.list_models()` names them")
    info = TeacherInfo(name, architecture, "", TIMM.licence)
    if weights is None:
        model = downloaded(
            name, lambda: timm.create_model(architecture, pretrained=True, num_classes=0)
        )
        tensors = model.state_dict()
    else:
        tensors = read_weights(find_weights(weights, ("model.safetensors", "pytorch_model.bin")))
        tensors = {n: t for n, t in tensors.items() if not n.startswith(("head.", "fc_norm."))}
        model = filled_timm(architecture, tensors)
    _check_plain(model, architecture)
    config = cast("TimmViT", model).pretrained_cfg
    mean, std = (cast("Colours", tuple(values)) for values in (config["mean"], config["std"]))
    return timm_teacher(info, model, mean, std, weights_hash(tensors))


def filled_timm(architecture: str, tensors: dict[str, Tensor]) -> nn.Module:
    """Make timm's `architecture` without a classifier and fill it with `tensors`, strictly."""
    import timm

    model: nn.Module = timm.create_model(architecture, num_classes=0, pretrained=False)
    load_strictly(model, tensors, f"timm's {architecture}")
    return model


def timm_teacher(
    info: TeacherInfo,
    model: nn.Module,
    mean: Colours,
    std: Colours,
    hashed: str,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Teacher:
    """Freeze a timm ViT and read its grid and input size."""
    embedding = cast("TimmViT", model).patch_embed
    grid = Grid(*embedding.grid_size)
    preprocessing = Preprocessing(size=embedding.img_size[0], mean=mean, std=std)
    model.eval().requires_grad_(False)
    return Teacher(
        info.name, info.architecture, model, grid, preprocessing, hashed, info.licence, project
    )


def _check_plain(model: nn.Module, architecture: str) -> None:
    """Refuse what `encode` would compute wrongly.

    Rotary or relative positions, talking heads, no CLS token.
    """
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import VisionTransformer

    vit = cast("TimmViT", model)
    plain = type(model) is VisionTransformer and all(
        type(block.attn) is Attention for block in vit.blocks
    )
    if not plain or vit.cls_token is None:
        raise UserError(
            f"timm's {architecture} is not a plain ViT with a CLS token, from which the teacher's "
            "attention is read: "
            "choose one of timm's VisionTransformer models"
        )
    if len(set(vit.patch_embed.img_size)) != 1:
        raise UserError(f"timm's {architecture} does not see squares: choose another")
