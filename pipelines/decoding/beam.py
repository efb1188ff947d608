"""Beam search, as transformers has it."""

from pydantic.dataclasses import dataclass

from pipelines.decoding.generation import Limits, generate
from pipelines.decoding.prompts import Model, Prompts
from pipelines.decoding.settings import STRICT, Count, Number


@dataclass(frozen=True, config=STRICT)
class Settings:
    """The authors' beams; the paper gives no number."""

    num_beams: Count = 5
    length_penalty: Number = 1.0


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch."""
    return generate(
        model, prompts, limits, num_beams=settings.num_beams, length_penalty=settings.length_penalty
    )
