"""DeCo (Wang et al. 2024, arXiv 2410.11779).

Correct the last layer by the earlier one that is surest of one of its candidates, in one pass.

Candidates are the fewest likeliest tokens that hold `top_p`, at most `top_k`. Of the layers j the
one with the largest probability m of a candidate is taken: l' = l + alpha m l_j over the
candidates. l_j is the head over the final norm of the states that enter decoder layer j. The
likeliest token is taken. The layer is chosen for each row.

B prompts, C layers, K candidates, V vocabulary.
"""

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from pipelines.decoding.early import early_logits, layers_of
from pipelines.decoding.generation import Limits, generate
from pipelines.decoding.prompts import Model, Prompts
from pipelines.decoding.settings import STRICT, Count, Part, Place, Strength

LAYERS = (20, 28)  # the code's, of LLaVA-1.5 7B


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Published values, of the code's scripts for LLaVA-1.5 7B.

    `first_layer`, `last_layer` None: layers 20 to 28 of 32, at the same share of another depth.
    """

    alpha: Strength = 0.6
    top_p: Part = 0.9
    top_k: Count = 20
    first_layer: Place | None = None
    last_layer: Place | None = None


def check(model: Model, settings: Settings) -> range:
    """Return the layers; a UserError where the model has no such ones."""
    return layers_of(model, "deco", (settings.first_layer, settings.last_layer), LAYERS)


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch."""
    layers = tuple(check(model, settings))
    with early_logits(model, layers, norm=True) as early:

        def correct(ids: Tensor, scores: Tensor) -> Tensor:
            return corrected(scores, early["logits"], settings)

        return generate(model, prompts, limits, [correct])


def corrected(logits: Tensor, early: Tensor, settings: Settings) -> Tensor:
    """Logits (B, V) of the candidates, corrected, -inf elsewhere; `early` (B, C, V)."""
    hidden = logits.isneginf()  # what may not be said is no candidate and has no share of any layer
    early = early.float().masked_fill(hidden[:, None], -torch.inf)
    count = min(settings.top_k, logits.shape[1])
    likeliest, names = torch.softmax(logits, dim=-1).topk(count)  # (B, K)
    before = likeliest.cumsum(-1) - likeliest
    within = (before < settings.top_p) & (likeliest > 0)
    within[:, 0] = True
    sure = torch.softmax(early, dim=-1).gather(2, names[:, None].expand(-1, early.shape[1], -1))
    sure = sure.masked_fill(~within[:, None], -1.0).amax(2)  # (B, C)
    most, layer = sure.max(dim=1)
    chosen = early[torch.arange(len(early), device=early.device), layer]
    kept = torch.zeros_like(hidden).scatter(1, names, within) & ~hidden
    return (logits + settings.alpha * most[:, None] * chosen).masked_fill(~kept, -torch.inf)
