"""M3ID (Favero et al. 2024, arXiv 2403.14003).

Contrast with the text alone, the more the longer the answer grows.

l' = l + (1 - g) / g (l - l_text) over the plausible tokens, g = exp(-decay t), t = 1 for the first
new token. The paper's indicator, which applies it only where the model is unsure (max p <
confidence), is off by default, as in the implementation of AVISC's authors that others follow;
there is no official code.

B prompts, V vocabulary.
"""

import math

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from pipelines.decoding.contrast import contrasted, plausible, text_alone
from pipelines.decoding.generation import Limits, sampler
from pipelines.decoding.prompts import Model, Prompts
from pipelines.decoding.settings import STRICT, Part, Share, Strength, Temperature


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Published values; `confidence` None applies the contrast at every step."""

    decay: Strength = 0.02
    beta: Share = 0.1
    confidence: Part | None = None
    sample: bool = True
    temperature: Temperature = 1.0


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch."""

    def combine(logits: Tensor, text: Tensor, step: int) -> Tensor:
        main, bare = torch.log_softmax(logits, dim=-1), torch.log_softmax(text, dim=-1)
        weight = torch.full_like(main[:, :1], math.expm1(settings.decay * step))  # (1 - g) / g
        if settings.confidence is not None:
            weight = weight * (
                main.max(dim=-1, keepdim=True).values < math.log(settings.confidence)
            )
        return plausible(main + weight * (main - bare), main, settings.beta)

    draw = sampler(prompts, seed, temperature=settings.temperature) if settings.sample else None
    return contrasted(model, prompts, limits, text_alone(model, prompts), combine, draw)
