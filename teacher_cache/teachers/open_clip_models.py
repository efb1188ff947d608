"""Any plain ViT with a CLS token of open_clip: `open_clip:NAME`, and the towers of UniMed-CLIP."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NotRequired, Protocol, TypedDict, cast

from torch import Tensor, nn

from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.vocabulary import PoolingAttention
from teacher_cache.teachers.base import Teacher, TeacherInfo, downloaded
from teacher_cache.teachers.checkpoints import (
    find_weights,
    load_strictly,
    read_weights,
    tensors_below,
    weights_hash,
)
from teacher_cache.teachers.timm_models import refusal
from teacher_cache.teachers.trained import (
    OPEN_CLIP_CONFIG,
    Configs,
    Source,
    Trained,
    agreed,
    complete,
    configs_beside,
    of_file,
    of_mapping,
    part,
    preprocessing_of,
    sources_of,
    tag_hint,
)

OPEN_CLIP = TeacherInfo(
    "open_clip:NAME[/TAG]",
    "any open_clip ViT",
    "open_clip's registry for TAG, or --weights",
    "see the weights",
)
WITH_CLS = "take open_clip:ViT-B-16, or by its name unimed-b or biomedclip"


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


class ModelConfig(TypedDict):
    """What is read of open_clip's model configuration."""

    embed_dim: int
    vision_cfg: VisionConfig
    text_cfg: NotRequired[Mapping[str, object]]
    quick_gelu: NotRequired[bool]


class Published(NamedTuple):
    """What is published of an open_clip model: all tensors by name, its configuration, settings."""

    architecture: str
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    trained: Trained


def load_open_clip(
    name: str,
    rest: str,
    weights: str | None,
    said: Trained,
    attention: PoolingAttention = "pooled",
) -> Teacher:
    """Load open_clip's NAME, or NAME/TAG with the registry's weights of that tag.

    The tag says what its weights were trained with, also where `weights` is a local copy of them;
    otherwise an `open_clip_config.json` beside the file, or `said`.
    """
    found = published(name, rest, weights, said)
    info = TeacherInfo(name, found.architecture, "", OPEN_CLIP.licence)
    return open_clip_tower(info, found.config, _visual(found.tensors, name), found.trained)


def published(name: str, rest: str, weights: str | None, said: Trained) -> Published:
    """Read what is published of open_clip's NAME or NAME/TAG, as `load_open_clip` loads it."""
    import open_clip

    architecture, _, tag = rest.partition("/")
    if architecture not in open_clip.list_models():
        raise UserError(
            f"open_clip knows no model {architecture!r}; `open_clip.list_models()` names them"
        )
    config = open_clip_config(architecture)
    tags = _tags(architecture, tag)

    def registered() -> Source | None:
        return Source(f"the tag {tag}", tag_settings(architecture, tag)) if tag else None

    if weights is None:
        if not tag:
            raise UserError(
                f"teacher {name} needs its weights: pass --weights FILE, or name a tag "
                f"({', '.join(tags) or 'none'}) as {name}/TAG"
            )
        trained = agreed(name, sources_of(Configs(None, None), said, registered))
        quick = bool(trained.quick_gelu)
        tensors = downloaded(
            name,
            lambda: open_clip.create_model(architecture, pretrained=tag, force_quick_gelu=quick),
        ).state_dict()
    else:
        file = find_weights(weights, ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"))
        configs = configs_beside(weights, file)
        if configs.open_clip is not None:
            config = _same_tower(config, part(configs.open_clip, "model_cfg"), architecture)
        trained = agreed(name, _of_name(architecture, sources_of(configs, said, registered)))
        trained = of_file(weights, trained, (tag_settings(architecture, one) for one in tags))
        complete(name, trained, Trained._fields, tag_hint(tags, tag, f"{name}/TAG"))
        tensors = read_weights(file)
    return Published(architecture, config, tensors, trained)


def _tags(architecture: str, tag: str) -> list[str]:
    """Return the tags of an architecture's weights, of which `tag`, where it is named, is one."""
    import open_clip

    tags: list[str] = open_clip.list_pretrained_tags_by_model(architecture)
    if tag and not open_clip.get_pretrained_cfg(architecture, tag):
        raise UserError(
            f"open_clip has no weights {tag!r} of {architecture}; it has "
            f"{', '.join(tags) or 'none'}"
        )
    return tags


def _visual(tensors: Mapping[str, Tensor], name: str) -> Mapping[str, Tensor]:
    """Return the vision tower's tensors: those below `visual.`, or all where none is."""
    whole = any(tensor.startswith("visual.") for tensor in tensors)
    return tensors_below(tensors, "visual.", name) if whole else tensors


def tag_settings(architecture: str, tag: str) -> Trained:
    """Return what open_clip's weights TAG of an architecture were trained with."""
    import open_clip

    registered = open_clip.get_pretrained_cfg(architecture, tag)
    config = open_clip.get_model_config(architecture)
    quick = registered.get("quick_gelu", config.get("quick_gelu", False))
    return of_mapping(registered, f"open_clip's {architecture}/{tag}")._replace(quick_gelu=quick)


def _of_name(architecture: str, sources: list[Source]) -> list[Source]:
    """Add what the name of an architecture says: `-quickgelu` has that activation."""
    import open_clip

    quick = open_clip.get_model_config(architecture).get("quick_gelu", False)
    named = Source(f"the name {architecture}", Trained(quick_gelu=True))
    return [named, *sources] if quick else sources


def _same_tower(
    config: ModelConfig, beside: Mapping[str, object], architecture: str
) -> ModelConfig:
    """Refuse a configuration file that describes another tower than the name."""
    from open_clip.model import CLIPVisionCfg

    if not beside:
        return config
    try:
        found = CLIPVisionCfg(**part(beside, "vision_cfg"))
    except TypeError as error:
        raise UserError(
            f"{OPEN_CLIP_CONFIG} has a vision_cfg that open_clip cannot read ({error})"
        ) from None
    wanted = CLIPVisionCfg(**config["vision_cfg"])
    pairs = [("embed_dim", config["embed_dim"], beside.get("embed_dim"))]
    pairs += [
        (field, value, getattr(found, field))
        for field, value in vars(wanted).items()
        if field != "patch_dropout"  # only in training
    ]
    for field, value, other in pairs:
        if value != other:
            raise UserError(
                f"{OPEN_CLIP_CONFIG} describes another model than {architecture}: {field} is "
                f"{other}, not {value}; name the model of these weights"
            )
    return config


def open_clip_tower(
    info: TeacherInfo, config: ModelConfig, tensors: Mapping[str, Tensor], trained: Trained
) -> Teacher:
    """Build open_clip's vision tower, fill it with `tensors`, and freeze it.

    `trained` is complete. Where the activation is QuickGELU the architecture's name ends with
    `-quickgelu`, so that it is part of a store's identity.
    """
    vision, quick = config["vision_cfg"], bool(trained.quick_gelu)
    model = empty_tower(config, info.architecture, quick)
    load_strictly(model, tensors, info.name)
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
    model.eval().requires_grad_(False)
    return Teacher(
        info.name,
        info.architecture.removesuffix("-quickgelu") + ("-quickgelu" if quick else ""),
        model,
        Grid(patches, patches),
        preprocessing_of(vision["image_size"], trained),
        weights_hash(tensors),
        info.licence,
        project,
        projection=vit.proj,
    )


def open_clip_config(architecture: str) -> ModelConfig:
    """Return open_clip's configuration of a ViT of its own."""
    import open_clip

    config: ModelConfig | None = open_clip.get_model_config(architecture)
    vision = config["vision_cfg"] if config is not None else {}
    if config is not None and "timm_model_name" not in vision:
        if isinstance(vision.get("layers"), int):
            return config
        raise UserError(
            f"open_clip's {architecture} is not a plain ViT with a CLS token, from whose attention "
            f"E_a is read: {WITH_CLS}"
        )
    wrapped = vision.get("timm_model_name", "")
    reason = refusal(wrapped)
    if reason:
        raise UserError(f"open_clip's {architecture} wraps timm's {wrapped}, which {reason}")
    raise UserError(
        f"open_clip's {architecture} wraps timm's {wrapped}: take timm:{wrapped}, which reads "
        "open_clip's file of it as --weights"
    )


def empty_tower(config: ModelConfig, architecture: str, quick_gelu: bool) -> nn.Module:
    """Make the vision tower, and refuse one that `encode` would compute wrongly."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower
    from open_clip.transformer import VisionTransformer

    model: nn.Module = _build_vision_tower(
        config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), quick_gelu
    )
    vit = cast("OpenClipViT", model)
    plain = isinstance(model, VisionTransformer) and vit.attn_pool is None
    if not plain or not all(isinstance(one, nn.MultiheadAttention) for one in _attentions(vit)):
        raise UserError(
            f"open_clip's {architecture} is not a plain ViT with a CLS token, but pools by queries "
            f"or attends in another way: {WITH_CLS}"
        )
    return model


def _attentions(vit: OpenClipViT) -> list[nn.Module]:
    return [block.get_submodule("attn") for block in vit.transformer.resblocks]
