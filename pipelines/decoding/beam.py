"""Beam search, as transformers has it."""

from dataclasses import dataclass

from pipelines.decoding.generation import Limits, generate
from pipelines.decoding.prompts import Model, Prompts


@dataclass(frozen=True)
class Settings:
    """The authors' beams; the paper gives no number."""

    num_beams: int = 5
    length_penalty: float = 1.0


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch."""
    return generate(
        model, prompts, limits, num_beams=settings.num_beams, length_penalty=settings.length_penalty
    )
