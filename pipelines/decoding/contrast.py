"""The second pass of the contrastive methods.

B prompts, t new tokens, V vocabulary.

Another view of the same prompt, its own cache, the same new tokens.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipelines.decoding.attention import undisturbed
from pipelines.decoding.generation import Processor
from pipelines.decoding.prefix import new_cache
from pipelines.decoding.prompts import Model, Prompts, places


class ContrastPass:
    """Logits of a changed view of the prompts, continued by the main pass's tokens.

    The view has its own length and cache; W acts on its image tokens alone, because the ids say
    where those are.
    """

    def __init__(self, model: Model, prompts: Prompts) -> None:
        self._model, self._prompts = model, prompts
        self._mask = prompts.mask
        self._places, self._shift = places(model, prompts.ids, prompts.mask)
        self._cache = new_cache()
        self._seen = 0

    def logits(self, generated: Tensor) -> Tensor:
        """Next-token logits (B, V) in float32 after the `generated` tokens (B, t).

        Each call brings one more token.
        """
        if self._seen != generated.shape[1]:
            raise ValueError(
                f"the contrast pass has seen {self._seen} new tokens, the main pass "
                f"{generated.shape[1]}"
            )
        inputs, positions = self._prompts.model_inputs(), self._places
        if self._seen:
            inputs = {"input_ids": generated[:, -1:]}
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(generated), 1)], dim=1)
            positions = self._mask.sum(1, keepdim=True) - 1 + self._shift
        self._seen += 1
        with torch.no_grad(), undisturbed():
            output = self._model(
                **inputs | {"attention_mask": self._mask},
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return output.logits[:, -1].float()


def contrasted(
    model: Model,
    main: Prompts,
    view: Prompts | Callable[[], Prompts],
    combine: Callable[[Tensor, Tensor, int], Tensor],
) -> Processor:
    """Processor that replaces the main logits l by `combine(l, l_view, t)`.

    `t` counts new tokens, 1 for the first. A view that depends on the main prefill is given as a
    function; it is called after that.
    """
    passes: list[ContrastPass] = []
    length = main.ids.shape[1]

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        if not passes:
            passes.append(ContrastPass(model, view() if callable(view) else view))
        generated = ids[:, length:]
        # a token that the main pass may not say has no share of the view's probability either
        other = passes[0].logits(generated).masked_fill(scores.isneginf(), -torch.inf)
        return combine(scores, other, generated.shape[1] + 1)

    return process


def amplified(alpha: float, beta: float) -> Callable[[Tensor, Tensor, int], Tensor]:
    """(1 + alpha) l - alpha l_view over the plausible tokens: the rule of VCD, AVISC and DAMRO."""

    def combine(logits: Tensor, view: Tensor, step: int) -> Tensor:
        view = torch.where(torch.isnan(view), logits, view)
        return plausible((1 + alpha) * logits - alpha * view, logits, beta)

    return combine


def plausible(combined: Tensor, logits: Tensor, beta: float) -> Tensor:
    """Adaptive plausibility: -inf where l_v < max l + log beta; beta 0 keeps every token."""
    if beta <= 0:
        return combined
    return combined.masked_fill(
        logits < logits.max(dim=-1, keepdim=True).values + math.log(beta), -torch.inf
    )
