"""DAMRO (Gong et al. 2024, arXiv 2410.04514).

Contrast with the image patches that the vision encoder attends to most.

Those outliers carry global, not local information. They are found at the layer whose output the
student uses: the CLS query against the patch keys over the full width, heads not split. The
contrast pass sees them alone, the one with the most attention first.

P images, N patches.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal, get_args

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from pipelines.decoding.contrast import amplified, contrasted
from pipelines.decoding.generation import Limits, sampler
from pipelines.decoding.prompts import Model, Prompts
from pipelines.decoding.settings import STRICT, Count, Number, Share, Temperature
from shared.errors import UserError

Kind = Literal["feature", "last"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Published values for LLaVA-1.5.

    `others`: the remaining patches are dropped, and the outliers stand in falling order of
    attention (published); or they stay as zeros, and the outliers in their places. `attention`: of
    the layer whose output the student reads, over the full width (published); or of the last
    layer, the mean of its heads (MEDALIGN's authors).
    """

    alpha: Number = 2.0
    beta: Share = 0.1
    top_k: Count = 10
    others: Literal["drop", "zero"] = "drop"
    attention: Kind = "feature"
    sample: bool = True
    temperature: Temperature = 1.0


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch."""
    view = outlier_view(model, prompts, settings)
    draw = sampler(prompts, seed, temperature=settings.temperature) if settings.sample else None
    return contrasted(model, prompts, limits, view, amplified(settings.alpha, settings.beta), draw)


def outlier_view(model: Model, prompts: Prompts, settings: Settings) -> Prompts:
    """Return the prompts with nothing but the outlier patches of each image."""
    if prompts.pixels is None:
        return prompts
    seen = prompts.tower
    if seen is None:  # whoever encoded the images did not watch: one more pass of the tower
        with watched(model) as seen, torch.no_grad():
            model.model.get_image_features(prompts.pixels, return_dict=True)
    tokens = len(prompts.features[0])
    found = outliers(seen[settings.attention], tokens, settings.top_k)
    if settings.others == "drop":
        return prompts.in_order(list(found))
    kept = torch.zeros(len(found), tokens, dtype=torch.bool, device=found.device)
    kept.scatter_(1, found, True)
    return prompts.with_features(
        [
            image * row.to(image.dtype)[:, None]
            for image, row in zip(prompts.features, kept, strict=True)
        ]
    )


def outliers(weights: Tensor, tokens: int, top_k: int) -> Tensor:
    """Numbers (P, top_k) of the image tokens that CLS attends to most, in falling order.

    `weights` (P, 1 + patches) is its attention. An image has `tokens` tokens; with fewer patches
    than `top_k` all are named.

    Raises
    ------
    UserError
        Several patches make one token, or there is no CLS token before them.
    """
    patches = weights.shape[1] - 1
    if tokens not in (patches, patches + 1):
        raise UserError(
            "DAMRO needs a vision encoder with a CLS token before its patches; leave damro out for "
            "this student"
        )
    best: Tensor = weights[:, 1:].topk(min(top_k, patches), dim=1).indices
    return best + (tokens - patches)


@contextmanager
def watched(model: Model) -> Iterator[dict[str, Tensor]]:
    """Read what CLS attends to, (P, 1 + patches), in the one pass of the tower inside the block.

    "feature": at the layer whose output the student reads, over the full width; "last": at the last
    layer, the mean of its heads.

    Raises
    ------
    UserError
        The vision encoder has no CLS token or no plain query and key projections.
    """
    check(model)
    weights: dict[str, Tensor] = {}
    with ExitStack() as stack:
        seen = {}
        for kind in KINDS:
            layer = _feature_layer(model, kind)
            seen[kind] = _projections(layer, stack), _heads(layer) if kind == "last" else 1
        yield weights
    for kind, (found, heads) in seen.items():
        query, key = found["q"].float(), found["k"].float()  # (P, 1 + patches, C)
        width = query.shape[2] // heads
        split = (len(query), -1, heads, width)
        query = query[:, :1].reshape(split).transpose(1, 2)  # (P, heads, 1, width)
        key = key.reshape(split).transpose(1, 2)
        logits = (query @ key.transpose(2, 3))[:, :, 0] * width**-0.5
        weights[kind] = logits.softmax(dim=-1).mean(1)


def _projections(layer: nn.Module, stack: ExitStack) -> dict[str, Tensor]:
    """Return where the layer's q and k of the next pass will be."""
    found: dict[str, Tensor] = {}
    for name in "qk":
        handle = getattr(layer, f"{name}_proj").register_forward_hook(
            lambda module, args, output, name=name: found.__setitem__(name, output.detach())
        )
        stack.callback(handle.remove)
    return found


def check(model: Model) -> None:
    """Raise a `UserError` where the student's image tokens are no patches that a CLS token sees."""
    tower: nn.Module | None = getattr(model.model, "vision_tower", None)
    names = [name for name, _ in tower.named_parameters()] if tower is not None else []
    if not any(name.endswith(("class_embedding", "cls_token")) for name in names):
        raise UserError(
            "DAMRO needs a vision encoder with a CLS token, as CLIP and DINOv2 have; leave damro "
            "out for this student"
        )
    if getattr(model.config, "downsample_ratio", 1) != 1:
        raise UserError(
            "DAMRO needs an image token for each patch of the vision encoder, and this student "
            "joins several in one; leave damro out for it"
        )


def _heads(attention: nn.Module) -> int:
    """Return the number of heads, which CLIP and DINOv2 name differently."""
    return int(getattr(attention, "num_heads", 0) or getattr(attention, "num_attention_heads", 1))


def _feature_layer(model: Model, attention: str) -> nn.Module:
    """Find the attention module of the vision layer whose output the student reads, or the last."""
    tower: nn.Module | None = getattr(model.model, "vision_tower", None)
    given: int | list[int] = getattr(model.config, "vision_feature_layer", 0)
    index = -1 if attention == "last" else given if isinstance(given, int) else given[-1]
    modules = [
        module
        for module in (tower.modules() if tower is not None else ())
        if hasattr(module, "q_proj") and hasattr(module, "k_proj")
    ]
    place = index - 1 if index > 0 else index  # hidden_states[i] is the output of layer i - 1
    if index == 0 or not -len(modules) <= place < len(modules):
        raise UserError(
            "DAMRO needs a vision encoder with a CLS token, as CLIP and DINOv2 have; leave damro "
            "out for this student"
        )
    return modules[place]
