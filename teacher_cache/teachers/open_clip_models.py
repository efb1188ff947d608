"""Any plain ViT with a CLS token of open_clip: `open_clip:NAME`, and the towers of UniMed-CLIP."""

from collections.abc import Callable, Mapping, Sequence
from typing import NotRequired, Protocol, TypedDict, cast

from torch import Tensor, nn

from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.targets import Preprocessing
from teacher_cache.teachers.base import OPENAI_MEAN, OPENAI_STD, Teacher, TeacherInfo, downloaded
from teacher_cache.teachers.checkpoints import (
    find_weights,
    load_strictly,
    read_weights,
    tensors_below,
    weights_hash,
)

OPEN_CLIP = TeacherInfo(
    "open_clip:NAME[/TAG]",
    "any open_clip ViT",
    "open_clip's registry for TAG, or --weights",
    "see the weights",
)


class Transformer(Protocol):
    """What is read of open_clip's `Transformer`."""

    batch_first: bool
    resblocks: Sequence[nn.Module]


class OpenClipViT(Protocol):
    """What is read of open_clip's `VisionTransformer`."""

    attn_pool: nn.Module | None
    ln_post: Callable[[Tensor], Tensor]
    proj: Tensor | None
    transformer: Transformer


class VisionConfig(TypedDict, total=False):
    """What is read of the vision part of open_clip's model configuration."""

    image_size: int
    layers: int
    patch_size: int
    timm_model_name: str


class Colours(TypedDict, total=False):
    """The normalisation of open_clip's preprocessing."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class ModelConfig(TypedDict):
    """What is read of open_clip's model configuration."""

    embed_dim: int
    vision_cfg: VisionConfig
    quick_gelu: NotRequired[bool]
    preprocess_cfg: NotRequired[Colours]


def load_open_clip(name: str, rest: str, weights: str | None) -> Teacher:
    """Load open_clip's NAME, or NAME/TAG with the registry's weights of that tag."""
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
        tensors = downloaded(
            name, lambda: open_clip.create_model(architecture, pretrained=tag)
        ).state_dict()
    else:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise UserError(
            f"teacher {name} needs its weights: pass --weights FILE, or name a tag ({tags}) as "
            f"{name}/TAG"
        )
    visual = (
        tensors_below(tensors, "visual.", name)
        if any(n.startswith("visual.") for n in tensors)
        else tensors
    )
    return open_clip_tower(name, architecture, visual, OPEN_CLIP.licence)


def open_clip_tower(
    name: str, architecture: str, tensors: Mapping[str, Tensor], licence: str
) -> Teacher:
    """Build open_clip's vision tower `architecture`, fill it with `tensors`, and freeze it."""
    config = _config_of(architecture)
    vision, colours = config["vision_cfg"], config.get("preprocess_cfg", {})
    model = _empty_tower(config, architecture)
    load_strictly(model, tensors, name)
    vit = cast("OpenClipViT", model)
    # Tokens first, as torch's attention works inside. Images first, it takes a path of its own on a
    # CPU, which forms every weight; kept off that one, it hands transposed tensors on, which cost
    # the whole block a sixth of its speed.
    vit.transformer.batch_first = False
    for attention in _attentions(vit):
        cast("nn.MultiheadAttention", attention).batch_first = False

    def project(tokens: Tensor) -> Tensor:
        projected = vit.ln_post(tokens)
        return projected if vit.proj is None else projected @ vit.proj

    patches = vision["image_size"] // vision["patch_size"]
    preprocessing = Preprocessing(
        size=vision["image_size"],
        mean=colours.get("mean", OPENAI_MEAN),
        std=colours.get("std", OPENAI_STD),
    )
    model.eval().requires_grad_(False)
    grid, hashed = Grid(patches, patches), weights_hash(tensors)
    return Teacher(name, architecture, model, grid, preprocessing, hashed, licence, project)


def _config_of(architecture: str) -> ModelConfig:
    """Return open_clip's configuration of a ViT of its own."""
    import open_clip

    config: ModelConfig | None = open_clip.get_model_config(architecture)
    if config is not None:
        vision = config["vision_cfg"]
        if "timm_model_name" not in vision and isinstance(vision.get("layers"), int):
            return config
    raise UserError(
        f"open_clip's {architecture} is not one of its own ViTs; timm:NAME serves those it wraps"
    )


def _empty_tower(config: ModelConfig, architecture: str) -> nn.Module:
    """Make the vision tower, and refuse one that `encode` would compute wrongly."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower
    from open_clip.transformer import VisionTransformer

    model: nn.Module = _build_vision_tower(
        config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), config.get("quick_gelu", False)
    )
    vit = cast("OpenClipViT", model)
    plain = isinstance(model, VisionTransformer) and vit.attn_pool is None
    if not plain or not all(isinstance(one, nn.MultiheadAttention) for one in _attentions(vit)):
        raise UserError(
            f"open_clip's {architecture} is not a plain ViT with a CLS token; choose one that is"
        )
    return model


def _attentions(vit: OpenClipViT) -> list[nn.Module]:
    return [block.get_submodule("attn") for block in vit.transformer.resblocks]
