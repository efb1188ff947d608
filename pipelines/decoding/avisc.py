"""AVISC (Woo et al. 2024, arXiv 2405.17820).

Contrast with the image tokens that take attention whatever is asked.

At the prefill the newest row's attention is read in every layer. The layers that look at the image
most (together a share `gamma`) are averaged; image tokens above mean + lam std are blind. The
contrast pass sees those alone, the embeddings of the others are blanked in place.

B prompts, L tokens of the longest, N patches.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from pipelines.decoding.attention import watching
from pipelines.decoding.contrast import amplified, contrasted
from pipelines.decoding.generation import Limits, item_generator, sampler
from pipelines.decoding.prompts import Model, Prompts
from pipelines.decoding.settings import STRICT, Number, Share, Temperature
from student_train.kernel import AttentionCall


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Published values (its scripts' lam).

    `masking` replaces the embeddings of the tokens that are not blind.
    """

    gamma: Share = 0.5
    lam: Number = 1.0
    alpha: Number = 1.0
    beta: Share = 0.1
    masking: Literal["zeros", "ones", "noise"] = "zeros"
    sample: bool = True
    temperature: Temperature = 1.0


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch."""
    layers = range(len(model.get_decoder().layers))
    weights: dict[int, Tensor] = {}  # layer -> (B, L), only the prefill's

    def read(layer: int, call: AttentionCall) -> None:
        if layer not in weights:
            weights[layer] = torch.softmax(call.logits(), dim=-1)[:, :, 0].mean(1)

    def view() -> Prompts:
        blind = blind_tokens(
            torch.stack([weights[layer] for layer in layers]), prompts.image_mask, settings
        )
        return blanked(prompts, blind, settings.masking, seed)

    combine = amplified(settings.alpha, settings.beta)
    draw = sampler(prompts, seed, temperature=settings.temperature) if settings.sample else None
    with watching(model, layers, read):
        return contrasted(model, prompts, limits, view, combine, draw)


def blind_tokens(weights: Tensor, image_mask: Tensor, settings: Settings) -> Tensor:
    """Mask (B, L) of blind image tokens.

    `weights` (layers, B, L): the newest row's attention, mean over heads.
    """
    blind = torch.zeros_like(image_mask)
    for row, mask in enumerate(image_mask):
        if int(mask.sum()) < 2:
            blind[row] = mask
            continue
        image = weights[:, row, mask]  # (layers, N)
        shares, order = (image.sum(1) / image.sum()).sort(descending=True)
        count = int((shares.cumsum(0) < settings.gamma).sum()) + 1
        mean = image[order[:count]].mean(0)
        blind[row, mask] = mean >= mean.mean() + settings.lam * mean.std()
    return blind


def blanked(prompts: Prompts, kept: Tensor, masking: str, seed: int) -> Prompts:
    """Return the prompts, image tokens outside `kept` (B, L) replaced by zeros, ones or noise."""
    flags = torch.split(kept[prompts.image_mask], [len(image) for image in prompts.features])
    generators = {
        row: item_generator(seed, f"{item}\x00mask") for row, item in enumerate(prompts.items)
    }
    features = []
    for row, image, keep in zip(prompts.image_rows(), prompts.features, flags, strict=True):
        filler = torch.zeros_like(image)
        if masking == "ones":
            filler = torch.ones_like(image)
        elif masking == "noise":
            filler = torch.randn(image.shape, generator=generators[row]).to(image)
        features.append(torch.where(keep[:, None], image, filler))
    return prompts.with_features(features)
