"""Visual contrastive decoding (Leng et al. 2024, arXiv 2311.16922).

Contrast with the same prompt over a noisy image.

l' = (1 + alpha) l - alpha l_noisy over the plausible tokens; the noisy image is the diffusion
process's x_t at step `noise_step`, on the normalised pixels, drawn once an item.

P images, S their side in pixels.
"""

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from pipelines.decoding.contrast import amplified, contrasted
from pipelines.decoding.generation import Limits, item_generator, sampler
from pipelines.decoding.prompts import Model, Prompts, encode_images
from pipelines.decoding.settings import STRICT, Number, Share, Temperature


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Published values (its LLaVA entry points pass alpha 1)."""

    alpha: Number = 1.0
    beta: Share = 0.1
    noise_step: Annotated[int, Field(ge=0, le=999)] = 500
    sample: bool = True
    temperature: Temperature = 1.0


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch."""
    view = noisy_view(model, prompts, settings.noise_step, seed)
    draw = sampler(prompts, seed, temperature=settings.temperature) if settings.sample else None
    return contrasted(model, prompts, limits, view, amplified(settings.alpha, settings.beta), draw)


def noisy_view(model: Model, prompts: Prompts, step: int, seed: int) -> Prompts:
    """Return the prompts over noisy images; an item's noise follows from its name."""
    if prompts.pixels is None:
        return prompts
    generators = {
        row: item_generator(seed, f"{item}\x00noise") for row, item in enumerate(prompts.items)
    }
    noise = torch.stack(
        [
            torch.randn(prompts.pixels.shape[1:], generator=generators[row])
            for row in prompts.image_rows()
        ]
    )
    return prompts.with_features(encode_images(model, diffused(prompts.pixels, noise, step)))


def diffused(pixels: Tensor, noise: Tensor, step: int) -> Tensor:
    """Return sqrt(a) x + sqrt(1 - a) noise with a = prod_{i <= step} (1 - b_i).

    b is a sigmoid schedule of 1000 steps.
    """
    schedule = torch.sigmoid(torch.linspace(-6, 6, 1000)) * (0.5e-2 - 1e-5) + 1e-5
    kept = torch.cumprod(1 - schedule, dim=0)[step]
    return kept.sqrt().to(pixels) * pixels + (1 - kept).sqrt().to(pixels) * noise.to(pixels)
