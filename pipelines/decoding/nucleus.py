"""Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751).

Draw from the smallest set of tokens that holds top_p.
"""

from dataclasses import replace

from pydantic.dataclasses import dataclass

from pipelines.decoding.generation import Limits, generate, sampler
from pipelines.decoding.prompts import Model, Prompts
from pipelines.decoding.settings import STRICT, Place, Share, Temperature
from student_train.models.base import TEMPERATURE_KEY


@dataclass(frozen=True, config=STRICT)
class Settings:
    """The authors' values; `top_k` 0 keeps every token.

    `temperature` null is the one in the checkpoint's `generation_config.json`, 1 where it has none.
    """

    temperature: Temperature | None = 1.0
    top_p: Share = 0.9
    top_k: Place = 0


def settled(settings: Settings, model: Model) -> Settings:
    """Return the settings with the checkpoint's temperature where they leave it to that."""
    if settings.temperature is not None:
        return settings
    own = getattr(model.config, TEMPERATURE_KEY, None)
    return replace(settings, temperature=1.0 if own is None else float(own))


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch; each item draws from its own generator."""
    settings = settled(settings, model)
    assert settings.temperature is not None
    draw = sampler(
        prompts, seed, temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k
    )
    return generate(model, prompts, limits, draw=draw)
