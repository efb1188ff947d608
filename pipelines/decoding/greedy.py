"""Greedy decoding: the likeliest token at every step."""

from dataclasses import dataclass

from pipelines.decoding.generation import Limits, generate
from pipelines.decoding.prompts import Model, Prompts


@dataclass(frozen=True)
class Settings:
    """Nothing to set."""


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch."""
    return generate(model, prompts, limits)
