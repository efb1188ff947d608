"""DAMRO (Gong et al. 2024, arXiv 2410.04514).

Contrast with the image patches that the vision encoder attends to most.

Those outliers carry global, not local information. They are found at the layer whose output the
student uses: the CLS query against the patch keys over the full width, heads not split. The
contrast pass sees them alone.

P images, N patches.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipelines.decoding.contrast import amplified, contrasted
from pipelines.decoding.generation import Limits, generate, sampler
from pipelines.decoding.prompts import Model, Prompts
from shared.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Published values for LLaVA-1.5. `others`.

    The remaining patches are dropped (published), or stay as zeros.
    """

    alpha: float = 2.0
    beta: float = 0.1
    top_k: int = 10
    others: Literal["drop", "zero"] = "drop"
    sample: bool = True
    temperature: float = 1.0


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch."""
    view = outlier_view(model, prompts, settings.top_k, settings.others)
    processors = [contrasted(model, prompts, view, amplified(settings.alpha, settings.beta))]
    draw = sampler(prompts, seed, temperature=settings.temperature) if settings.sample else None
    return generate(model, prompts, limits, processors, draw=draw)


def outlier_view(model: Model, prompts: Prompts, top_k: int, others: str) -> Prompts:
    """Return the prompts with nothing but the outlier patches of each image."""
    if prompts.pixels is None:
        return prompts
    kept = list(outliers(model, prompts.pixels, len(prompts.features[0]), top_k))
    if others == "drop":
        return prompts.keeping(kept)
    return prompts.with_features(
        [
            image * row.to(image.dtype)[:, None]
            for image, row in zip(prompts.features, kept, strict=True)
        ]
    )


def outliers(model: Model, pixels: Tensor, tokens: int, top_k: int) -> Tensor:
    """Mask (P, tokens) of the `top_k` patches with the largest CLS attention logit.

    It has `tokens` a student's image.

    Raises UserError where the vision encoder has no CLS token or no plain query and key
    projections.
    """
    attention = _feature_layer(model)
    found: dict[str, Tensor] = {}
    handles = [
        getattr(attention, f"{name}_proj").register_forward_hook(
            lambda module, args, output, name=name: found.__setitem__(name, output.detach())
        )
        for name in "qk"
    ]
    try:
        with torch.no_grad():
            model.model.get_image_features(pixels, return_dict=True)
    finally:
        for handle in handles:
            handle.remove()
    query, key = found["q"].float(), found["k"].float()  # (P, 1 + patches, C)
    patches = key.shape[1] - 1
    if tokens not in (patches, patches + 1):
        raise UserError(
            "DAMRO needs a vision encoder with a CLS token before its patches; leave damro out for "
            "this student"
        )
    logits = (query[:, :1] @ key[:, 1:].transpose(1, 2))[:, 0]  # softmax and scale change no order
    mask = torch.zeros(len(pixels), patches, dtype=torch.bool, device=pixels.device)
    mask.scatter_(1, logits.topk(min(top_k, patches), dim=1).indices, True)
    return mask if tokens == patches else torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1)


def _feature_layer(model: Model) -> nn.Module:
    """Find the attention module of the vision layer whose output the student reads."""
    tower: nn.Module | None = getattr(model.model, "vision_tower", None)
    given: int | list[int] = getattr(model.config, "vision_feature_layer", 0)
    index = given if isinstance(given, int) else given[-1]
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
