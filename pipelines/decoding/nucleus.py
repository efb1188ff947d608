"""Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751).

Draw from the smallest set of tokens that holds top_p.
"""

from dataclasses import dataclass

from pipelines.decoding.generation import Limits, generate, sampler
from pipelines.decoding.prompts import Model, Prompts


@dataclass(frozen=True)
class Settings:
    """The authors' values; `top_k` 0 keeps every token."""

    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 0


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch; each item draws from its own generator."""
    draw = sampler(
        prompts, seed, temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k
    )
    return generate(model, prompts, limits, draw=draw)
