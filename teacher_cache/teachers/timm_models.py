"""Any plain ViT with a CLS token of timm: `timm:NAME`, and the trunks of teachers built on timm."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.vocabulary import PoolingAttention
from teacher_cache.teachers.base import Teacher, TeacherInfo, downloaded
from teacher_cache.teachers.checkpoints import (
    find_weights,
    load_strictly,
    read_weights,
    weights_hash,
)
from teacher_cache.teachers.timm_maps import TimmMap, map_of
from teacher_cache.teachers.trained import (
    Configs,
    Source,
    Trained,
    agreed,
    complete,
    configs_beside,
    of_file,
    of_mapping,
    preprocessing_of,
    sources_of,
    tag_hint,
)

WITH_GRID = "choose another, such as timm:vit_base_patch16_224"
Filter = Callable[..., dict[str, Tensor]]  # (tensors by name, the model to be filled)

TIMM = TeacherInfo(
    "timm:NAME",
    "any timm ViT with a CLS token, or for S_e alone any square map",
    "timm's registry, or --weights",
    "see the weights",
)


class PatchEmbedding(Protocol):
    """What is read of timm's `PatchEmbed`."""

    grid_size: tuple[int, int]
    img_size: tuple[int, int]


class TimmViT(Protocol):
    """What is read of timm's `VisionTransformer`."""

    blocks: Sequence[nn.Module]
    cls_token: Tensor | None
    patch_embed: PatchEmbedding
    pretrained_cfg: Mapping[str, object]


def load_timm(
    name: str,
    architecture: str,
    weights: str | None,
    said: Trained,
    attention: PoolingAttention = "pooled",
) -> Teacher:
    """Load timm's `architecture`, with its registry's weights where none are given.

    `NAME.TAG` names what a file was trained with; otherwise a `config.json` or
    `open_clip_config.json` beside it says so, or `said`.
    """
    import timm

    if not timm.is_model(architecture):
        raise UserError(f"timm knows no model {architecture!r}; `timm.list_models()` names them")
    registry, (base, _, tag) = _registered(architecture), architecture.partition(".")
    if tag and tag not in registry:
        raise UserError(
            f"timm has no weights {tag!r} of {base}; it has {', '.join(registry) or 'none'}"
        )
    reason = "" if attention == "none" else refusal(architecture)
    if reason:
        raise UserError(f"timm's {architecture} {reason}")
    found = map_of(without_values(architecture)) if attention == "none" else None
    if isinstance(found, str):
        raise UserError(f"timm's {architecture} {found}; {WITH_GRID}")
    own = Source(f"timm's {base}", Trained(quick_gelu=_quick_gelu(architecture)))

    def registered() -> Source | None:
        return Source(f"the tag {tag}", registry[tag]) if tag else None

    if weights is None:
        sources = [own, *sources_of(Configs(None, None), said, registered)]
        model = downloaded(
            name, lambda: timm.create_model(architecture, pretrained=True, num_classes=0)
        )
        used = of_mapping(cast("TimmViT", model).pretrained_cfg, f"timm's {architecture}")
        trained = agreed(name, [Source("timm's registry", used), *sources])
        tensors = dict(model.state_dict())
    else:
        file = find_weights(weights, ("model.safetensors", "pytorch_model.bin"))
        configs = configs_beside(weights, file)
        trained = agreed(name, [own, *sources_of(configs, said, registered)])
        trained = of_file(weights, trained, registry.values())
        hint = tag_hint(list(registry), tag, f"{name}.TAG")
        model, tensors = _filled(architecture, read_weights(file))
    trained = complete(name, trained, ("mean", "std", "interpolation"), hint if weights else "")
    info = TeacherInfo(name, architecture, "", TIMM.licence)
    hashed = weights_hash(tensors)
    if found is None:
        return timm_teacher(info, model, trained, hashed)
    preprocessing = preprocessing_of(found.size, trained)
    model.eval().requires_grad_(False)
    return Teacher(
        name, architecture, TimmMap(model), found.grid, preprocessing, hashed, info.licence
    )


def _registered(architecture: str) -> dict[str, Trained]:
    """Return what each of timm's weights of an architecture was trained with, by tag."""
    from timm.models import get_pretrained_cfg, list_pretrained

    base = architecture.partition(".")[0]
    names = [name for name in list_pretrained(f"{base}.*") if name.partition(".")[0] == base]
    found = {}
    for name in names:
        config = get_pretrained_cfg(name)
        if config is not None:
            found[name.partition(".")[2]] = of_mapping(config.to_dict(), f"timm's {name}")
    return found


def _filled(architecture: str, source: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """Fill timm's `architecture` with a file of timm, open_clip, DINOv2 or RADIO, strictly.

    timm's own filter renames and, where the file has another grid, resamples.
    """
    import timm

    model: nn.Module = timm.create_model(architecture, num_classes=0, pretrained=False)
    expected = model.state_dict()
    try:
        tensors = _filter_of(architecture, model)(dict(source), model)
    except Exception as error:  # a foreign file fails wherever the filter first looks
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the weights are not those of timm's {architecture} ({type(error).__name__}: {reason})"
        ) from None
    classifier = cast("TimmViT", model).pretrained_cfg.get("classifier") or ()
    names = [classifier] if isinstance(classifier, str) else cast("Sequence[str]", classifier)
    left_out = ("head.", "head_dist.", "fc_norm.", *(f"{name}." for name in names))
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if name in expected or not name.startswith(left_out)
    }
    load_strictly(model, tensors, f"timm's {architecture}")
    return model, tensors


def _filter_of(architecture: str, model: nn.Module) -> Filter:
    """Return the filter that timm itself puts a checkpoint of `architecture` through."""
    from timm.models import deit, model_entrypoint, vision_transformer

    module = sys.modules[model_entrypoint(architecture.partition(".")[0]).__module__]
    plain = isinstance(model, vision_transformer.VisionTransformer)
    usual = vision_transformer.checkpoint_filter_fn if plain else _as_it_is
    own: Filter = getattr(module, "checkpoint_filter_fn", usual)
    if module is deit:
        return partial(own, adapt_layer_scale=True)
    if module is vision_transformer and "flexi" in architecture:
        return partial(own, interpolation="bilinear", antialias=False)
    if module is vision_transformer and "radio" in architecture:
        corners = any(
            name in architecture for name in getattr(vision_transformer, "_RADIO_ALIGN_CORNERS", ())
        )
        return partial(own, interpolation="bilinear", antialias=False, align_corners=corners)
    return own


def _as_it_is(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Keep a checkpoint of a family that has no filter."""
    return tensors


def filled_timm(architecture: str, tensors: dict[str, Tensor]) -> nn.Module:
    """Make timm's `architecture` without a classifier and fill it with `tensors`, strictly."""
    import timm

    model: nn.Module = timm.create_model(architecture, num_classes=0, pretrained=False)
    load_strictly(model, tensors, f"timm's {architecture}")
    return model


def timm_teacher(
    info: TeacherInfo,
    model: nn.Module,
    trained: Trained,
    hashed: str,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Teacher:
    """Freeze a timm ViT and read its grid and input size."""
    embedding = cast("TimmViT", model).patch_embed
    grid = Grid(*embedding.grid_size)
    preprocessing = preprocessing_of(embedding.img_size[0], trained)
    model.eval().requires_grad_(False)
    return Teacher(
        info.name, info.architecture, model, grid, preprocessing, hashed, info.licence, project
    )


def without_values(architecture: str) -> nn.Module:
    """Make timm's `architecture` on torch's meta device: its parts, and no memory."""
    import timm

    with torch.device("meta"):
        model: nn.Module = timm.create_model(architecture, num_classes=0, pretrained=False)
    return model


def _quick_gelu(architecture: str) -> bool:
    from timm.layers import QuickGELU

    modules = without_values(architecture).modules()
    return any(isinstance(module, QuickGELU) for module in modules)


def refusal(architecture: str) -> str:
    """Say why `encode` would compute a timm model wrongly, "" where it would not.

    Rotary or relative positions, talking heads, no CLS token, no square.
    """
    import timm
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import VisionTransformer

    if not timm.is_model(architecture):
        return f"timm does not know: {WITH_GRID}"
    model = without_values(architecture)
    alone = f"timm:{architecture} --attention none takes S_e alone"
    whole = f"{alone}, and timm:vit_base_patch16_224 has E_a too"
    if type(model) is not VisionTransformer:
        return (
            f"is a {type(model).__name__}, not a plain ViT with a CLS token, from whose attention "
            f"E_a is read: {whole}"
        )
    vit = cast("TimmViT", model)
    if vit.cls_token is None:
        return (
            "has no CLS token, from whose attention E_a is read, and so is not a plain ViT with a "
            f"CLS token: {whole}"
        )
    if not all(type(block.attn) is Attention for block in vit.blocks):
        return f"has an attention of another kind, not a plain ViT with a CLS token: {whole}"
    if len(set(vit.patch_embed.img_size)) != 1:
        return f"does not see squares: {WITH_GRID}"
    return ""
