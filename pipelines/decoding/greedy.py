"""Greedy decoding: the likeliest token at every step."""

from pydantic.dataclasses import dataclass

from pipelines.decoding.generation import Limits, generate
from pipelines.decoding.prompts import Model, Prompts
from pipelines.decoding.settings import STRICT


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Nothing to set."""


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch."""
    return generate(model, prompts, limits)
