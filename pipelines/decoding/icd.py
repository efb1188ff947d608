"""ICD (Wang et al. 2024, arXiv 2403.18715).

Contrast with the same question and image under an instruction that disturbs.

The instruction stands in the place of the template's system message; where a template has none, it
stands before the first question. l' = (1 + alpha) l - alpha l_disturbed over the plausible tokens.
"""

from typing import Literal

from pydantic.dataclasses import dataclass

from pipelines.decoding.contrast import amplified, contrasted
from pipelines.decoding.generation import Limits, check_positions, sampler
from pipelines.decoding.prompts import Model, Prompts
from pipelines.decoding.settings import STRICT, Number, Share, Temperature
from shared.errors import UserError

# The code's, each of which its scripts try.
INSTRUCTIONS = {
    "recognize": "You are an object detector to recognize every different objects.",
    "attributes": "You are an object detector to recognize every different objects by focusing "
    "the shapes, colors and relationships of objects.",
    "avoid": "I want you avoid any specific identification or categorization of the objects "
    "depicted.",
    "confused": "You are a confused objects detector to provide a fuzzy overview or impression "
    "of the image.",
    "overview": "You are an object detector to provide a general overview or impression of the "
    "image.",
}


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Published values. `instruction`: which of the five that the code's scripts try."""

    alpha: Number = 1.0
    beta: Share = 0.1
    instruction: Literal["recognize", "attributes", "avoid", "confused", "overview"] = "confused"
    sample: bool = True
    temperature: Temperature = 1.0


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch.

    Raises
    ------
    UserError
        The prompts came without their words, so that no other instruction could stand there.
    """
    if prompts.reworded is None:
        raise UserError(
            "ICD writes the question anew under another instruction, and these prompts are token "
            "ids alone; give `collate` its `reworded`, or leave icd out"
        )
    instruction = INSTRUCTIONS[settings.instruction]
    view = prompts.with_text([row(instruction) for row in prompts.reworded])
    lengths = view.mask.sum(1)
    longest = int(lengths.argmax())
    check_positions(model, int(lengths[longest]), limits.max_new_tokens, prompts.items[longest])
    draw = sampler(prompts, seed, temperature=settings.temperature) if settings.sample else None
    return contrasted(model, prompts, limits, view, amplified(settings.alpha, settings.beta), draw)
