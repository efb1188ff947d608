"""The contrastive methods: main and contrast rows as one batch of 2B rows with one cache.

B prompts, L tokens of the longest, T tokens so far, V vocabulary.

The contrast rows are another view of the same prompts. Both are prefilled by themselves, the view
after the main rows, since it may depend on them. From then on one forward pass takes the same new
token in each pair of rows.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.decoding.attention import undisturbed
from pipelines.decoding.generation import Limits, Processor, generate
from pipelines.decoding.prefix import Cache, new_cache, prefilled, prefix_cache
from pipelines.decoding.prompts import Model, Prompts, places

Combine = Callable[[Tensor, Tensor, int], Tensor]  # (l, l_view, t) -> scores, each (B, V)
View = Prompts | Callable[[], Prompts]  # a function: it depends on the main rows' prefill


class Pair:
    """Logits of prompts and of a view of them, token by token.

    The view has its own length. W acts on its image tokens alone, because the ids say where those
    are. Rows 0 to B - 1 of a forward pass are the prompts, rows B to 2B - 1 their views.
    """

    def __init__(self, model: Model, main: Prompts, view: View) -> None:
        self._model, self._main, self._view = model, main, view
        self._cache = new_cache()
        self._mask, self._shift = main.mask, main.mask.new_zeros(0)

    def first(self) -> tuple[Tensor, Tensor]:
        """Logits (B, V) of the prompts and of their view, in float32."""
        main = self._main
        cache = prefix_cache(self._model, main)
        own, shift = places(self._model, main.ids, main.mask)
        logits = self._forward(_tokens(main.ids[:, -1:]), main.mask, own[..., -1:], cache)
        view = self._view() if callable(self._view) else self._view
        other, seen, moved = self._prefill(view)
        length = max(main.mask.shape[1], view.mask.shape[1])
        for layer, (mine, its) in enumerate(zip(cache.layers, seen.layers, strict=True)):
            keys, values = (
                torch.cat([_filled(one, length, 2), _filled(two, length, 2)])
                for one, two in ((mine.keys, its.keys), (mine.values, its.values))
            )
            self._cache.update(keys, values, layer)
        self._mask = torch.cat([_filled(one.mask, length, 1) for one in (main, view)])
        self._shift = torch.cat([shift, moved])
        return logits, other

    def next(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, V) of both after one more token (B,) each."""
        self._mask = functional.pad(self._mask, (0, 1), value=1)
        positions = self._mask.sum(1, keepdim=True) - 1 + self._shift
        logits = self._forward(
            _tokens(tokens.repeat(2)[:, None]), self._mask, positions, self._cache
        )
        main, other = logits.chunk(2)
        return main, other

    def _prefill(self, view: Prompts) -> tuple[Tensor, Cache, Tensor]:
        """Return the view's logits (B, V), its cache, and what later places move by, (B, 1)."""
        own, shift = places(self._model, view.ids, view.mask)
        with undisturbed():
            if view.prefix is None:
                cache = new_cache()
                logits = self._forward(view.model_inputs(), view.mask, own, cache)
            else:
                cache = prefix_cache(self._model, view)
                logits = self._forward(_tokens(view.ids[:, -1:]), view.mask, own[..., -1:], cache)
        return logits, cache, shift

    def _forward(
        self, inputs: dict[str, object], mask: Tensor, positions: Tensor, cache: Cache
    ) -> Tensor:
        with torch.no_grad():
            output = self._model(
                **inputs | {"attention_mask": mask},
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return output.logits[:, -1].float()


def _tokens(ids: Tensor) -> dict[str, object]:
    return {"input_ids": ids}


def _filled(tensor: Tensor, length: int, dim: int) -> Tensor:
    """Put zeros before a tensor's entries of `dim` up to `length`."""
    after = [0, 0] * (tensor.ndim - 1 - dim)
    return functional.pad(tensor, (*after, length - tensor.shape[dim], 0))


def text_alone(model: Model, prompts: Prompts) -> Prompts:
    """Return the prompts without images, prefilled once for all methods that contrast with them."""
    if "text" not in prompts.shared:
        prompts.shared["text"] = prefilled(model, prompts.without_images())
    return prompts.shared["text"]


def contrasted(
    model: Model,
    prompts: Prompts,
    limits: Limits,
    view: View,
    combine: Combine,
    draw: Processor | None = None,
) -> list[list[int]]:
    """Answer every prompt by `combine(l, l_view, t)` in the place of its logits l.

    `t` counts new tokens, 1 for the first. The likeliest token is taken, or the one that `draw`
    leaves.
    """
    pair, length = Pair(model, prompts, view), prompts.ids.shape[1]
    newest: list[Tensor] = []  # the view's logits

    def combined(ids: Tensor, scores: Tensor) -> Tensor:
        # a token that the main rows may not say has no share of the view's probability either
        other = newest[-1].masked_fill(scores.isneginf(), -torch.inf)
        return combine(scores, other, ids.shape[1] - length + 1)

    def search(
        model: Model,
        input_ids: Tensor,
        logits_processor: Callable[[Tensor, Tensor], Tensor],
        **unused: object,
    ) -> Tensor:
        ids, ended = input_ids, torch.zeros_like(input_ids[:, 0], dtype=torch.bool)
        ends = ids.new_tensor(limits.end_ids)
        logits, other = pair.first()
        while True:
            newest[:] = [other]
            tokens = logits_processor(ids, logits).argmax(dim=-1)
            tokens = torch.where(ended, prompts.pad_token_id, tokens)
            ids = torch.cat([ids, tokens[:, None]], dim=1)
            ended = ended | torch.isin(tokens, ends)
            if ids.shape[1] == length + limits.max_new_tokens or bool(ended.all()):
                return ids
            logits, other = pair.next(tokens)

    return generate(model, prompts, limits, [combined], draw=draw, custom=search)


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
