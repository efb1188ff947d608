"""Where DoLa's early layer chooses alone, whatever the last layer says of the tokens.

Plausible tokens differ by -log(relative_top) at most in the last layer. Where the early layer's
least likely plausible token lies further than that below the next, log p - log p_early is largest
there whatever the last layer's order. On a small model whose head is tied to the embeddings, states
without the final norm are that loud at most steps, whatever is asked.

B rows, V vocabulary.
"""

import math
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pipelines.decoding.prompts import Model
from shared.console import warn

ENOUGH = 8  # steps with a choice, before anything is said of them

_counts: "WeakKeyDictionary[Model, Overruled]" = WeakKeyDictionary()


class Overruled:
    """Counts the steps of a model that had a choice, and those where the early layer had it."""

    def __init__(self) -> None:
        self.choices = 0
        self.alone = 0
        self._warned = False

    def see(self, logits: Tensor, contrasted: Tensor, relative_top: float, going: Tensor) -> None:
        """Count one step of the rows that `going` (B,) shows.

        `logits` (B, V) of the last layer, `contrasted` (B, V) as DoLa made them of these.
        """
        early = torch.log_softmax(logits, dim=-1) - contrasted  # inf where implausible
        lowest = early.topk(2, largest=False).values
        choice = lowest[:, 1].isfinite() & going
        alone = choice & (lowest[:, 1] - lowest[:, 0] > -math.log(relative_top))
        self.choices += int(choice.sum())
        self.alone += int(alone.sum())

    def tell(self, model: Model) -> None:
        """Warn in one line, once a model, where the early layer had most of the choices."""
        if self._warned or self.choices < ENOUGH or 2 * self.alone <= self.choices:
            return
        self._warned = True
        tied = getattr(model.lm_head, "weight", None) is model.get_decoder().embed_tokens.weight
        warn(
            f"DoLa's early layer chose alone at {self.alone} of {self.choices} steps, whatever the "
            f"last layer says{' (its head is tied)' if tied else ''}; leave dola out for this model"
        )


def overruled(model: Model) -> Overruled:
    """Return the counts of a model in this process."""
    return _counts.setdefault(model, Overruled())
