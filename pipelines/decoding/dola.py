"""DoLa (Chuang et al. 2024, arXiv 2309.03883).

Contrast the last layer with an earlier one, in one forward pass.

At every step the candidate layer whose next-token distribution differs most from the last layer's
(Jensen-Shannon) is the premature one; l' = log p - log p_premature over the tokens with p >=
relative_top max p. The layer is chosen for each row; the published code chooses one a batch and
runs batches of one.

B prompts, C candidate layers, V vocabulary.
"""

import math

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from pipelines.decoding.early import early_logits
from pipelines.decoding.generation import Limits, Processor, generate
from pipelines.decoding.overruled import overruled
from pipelines.decoding.prompts import Model, Prompts
from pipelines.decoding.settings import STRICT, Part, Place, Positive
from shared.errors import UserError


@dataclass(frozen=True, config=STRICT)
class Settings:
    """Published values for long answers. Layer j is the input of decoder layer j; None.

    Even ones of the lower half.

    `norm_premature` applies the final norm before the head, which the published code does not.
    """

    candidate_layers: tuple[Place, ...] | None = None
    relative_top: Part = 0.1
    norm_premature: bool = False
    repetition_penalty: Positive = 1.2


def decode(
    model: Model, prompts: Prompts, limits: Limits, settings: Settings, seed: int
) -> list[list[int]]:
    """Answer every prompt of the batch."""
    depth = len(model.get_decoder().layers)
    layers = (
        tuple(range(0, depth // 2, 2))
        if settings.candidate_layers is None
        else settings.candidate_layers
    )
    if not layers or not all(0 <= layer < depth for layer in layers):
        raise UserError(
            f"dola.candidate_layers={list(layers)}: name one or more layers within 0..{depth - 1}"
        )
    counts, length = overruled(model), prompts.ids.shape[1]
    ends = prompts.ids.new_tensor(limits.end_ids)
    with early_logits(model, layers, settings.norm_premature) as early:

        def contrast(ids: Tensor, scores: Tensor) -> Tensor:
            found = contrasted_layers(scores, early["logits"], settings.relative_top)
            going = ~torch.isin(ids[:, length:], ends).any(1)
            counts.see(scores, found, settings.relative_top, going)
            return found

        processors: list[Processor] = [contrast]
        if settings.repetition_penalty != 1.0:
            processors.append(repetition_penalty(prompts, settings.repetition_penalty))
        answers = generate(model, prompts, limits, processors)
    counts.tell(model)
    return answers


def contrasted_layers(logits: Tensor, early: Tensor, relative_top: float) -> Tensor:
    """Log p - log p_premature (B, V), -inf where implausible.

    `logits` (B, V), candidates `early` (B, C, V).
    """
    hidden = logits.isneginf()[:, None]  # what may not be said has no share of any layer
    main = torch.log_softmax(logits, dim=-1)
    candidates = torch.log_softmax(early.float().masked_fill(hidden, -torch.inf), dim=-1)
    mean = candidates.exp().add_(main.exp()[:, None]).mul_(0.5)
    # KL of the mean from each side, summed over the vocabulary: only the order counts. A mean of 0
    # adds nothing.
    logs = mean.clamp_min(torch.finfo(mean.dtype).tiny).log_().mul_(2)
    logs.sub_(candidates).sub_(main[:, None]).masked_fill_(hidden, 0.0)
    divergence = torch.linalg.vecdot(mean, logs)
    chosen = divergence.argmax(dim=1)
    premature = candidates[torch.arange(len(main), device=main.device), chosen]
    plausible = main >= main.max(dim=-1, keepdim=True).values + math.log(relative_top)
    return (main - premature).masked_fill(~plausible, -torch.inf)


def repetition_penalty(prompts: Prompts, penalty: float) -> Processor:
    """Penalise every token of prompt and answer as CTRL does: s / penalty above 0, s penalty below.

    The padding before a shorter prompt is no token of it (it may be the end token).
    """
    length = prompts.ids.shape[1]

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        said = torch.ones_like(ids)
        said[:, :length] = prompts.mask
        seen = torch.zeros_like(scores, dtype=torch.long).scatter_add_(1, ids, said) > 0
        return torch.where(
            seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores
        )

    return process
