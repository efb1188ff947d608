"""The model's passes in an OPERA search: all candidates of all beams of all items at once.

Every candidate sees its beam's past and itself, not its rivals, and the one that is chosen needs no
second pass.

R rows (beams of all items), n of one item, C candidates, K places of the cache, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines.decoding.prefix import new_cache, prefix_cache
from pipelines.decoding.prompts import Model, Prompts, places
from student_train.kernel import AttentionCall


class Passes:
    """A cache whose rows are the running beams, item after item.

    All rows have the same number of places K. `_past[item]` (K,) says which of them hold the item's
    own past: not the padding before its prompt, and not what it left behind when it went back.
    """

    def __init__(self, model: Model, prompts: Prompts) -> None:
        self._model, self._prompts = model, prompts
        self._cache = prefix_cache(model, prompts)
        self._past = list(prompts.mask.bool())
        _, self._shift = places(model, prompts.ids, prompts.mask)
        self._call: AttentionCall | None = None

    def see(self, layer: int, call: AttentionCall) -> None:
        """Take note of the last layer's attention (for `attention.watching`)."""
        self._call = call

    def first(self) -> Tensor:
        """Make the step of the prompts' last tokens; return next-token logits (B, V)."""
        mask = self._prompts.mask
        output = self._model.model(
            input_ids=self._prompts.ids[:, -1:],
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1 + self._shift,
            past_key_values=self._cache,
            use_cache=True,
        )
        return self.logits(output.last_hidden_state[:, -1])

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits in float32 of last hidden states (..., d)."""
        logits: Tensor = self._model.lm_head(hidden).float()
        return logits

    def attempt(
        self, tokens: Sequence[Tensor], items: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Feed each item's candidates (n, C) behind its beams.

        Returns last hidden states (R, C, d) of all rows, and of each item the last layer's
        attention (n, C, T + 1), the largest head's, to its T tokens so far and to the candidate
        itself.
        """
        owners = [item for item, of in zip(items, tokens, strict=True) for _ in of]
        ids = torch.cat(list(tokens))
        past = torch.stack([self._past[item] for item in owners])
        count, width = ids.shape
        dtype = self._model.get_decoder().embed_tokens.weight.dtype
        mask = torch.full(
            (count, width, past.shape[1] + width),
            torch.finfo(dtype).min,
            dtype=dtype,
            device=ids.device,
        )
        mask[:, :, : past.shape[1]].masked_fill_(past[:, None], 0)
        mask[:, range(width), range(past.shape[1], past.shape[1] + width)] = 0
        output = self._model.model(
            input_ids=ids,
            attention_mask=mask[:, None],
            position_ids=(past.sum(1, keepdim=True) + self._shift[owners]).expand(-1, width),
            past_key_values=self._cache,
            use_cache=True,
        )
        assert self._call is not None
        attention = torch.softmax(self._call.logits(width), dim=-1).amax(1)  # (R, C, K + C)
        itself = attention[:, :, past.shape[1] :].diagonal(dim1=1, dim2=2)[:, :, None]
        seen = torch.split(
            torch.cat([attention[:, :, : past.shape[1]], itself], dim=2), [len(of) for of in tokens]
        )
        own = [torch.cat([self._past[item], self._past[item].new_ones(1)]) for item in items]
        return output.last_hidden_state, [
            rows[:, :, places] for rows, places in zip(seen, own, strict=True)
        ]

    def keep(self, row: Tensor, place: Tensor, items: Sequence[int]) -> None:
        """Make each new row of an old one and one of its candidates.

        `items` are those that have rows.
        """
        before = len(self._past[items[0]])
        for layer in self._cache.layers:
            layer.keys = _picked(layer.keys, row, place, before)
            layer.values = _picked(layer.values, row, place, before)
        for item in items:
            self._past[item] = torch.cat([self._past[item], self._past[item].new_ones(1)])

    def rewrite(self, first: int, item: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Put `tokens` (n, t) behind the prompt in the item's n rows from `first` on.

        Return next-token logits (n, V), and the last layer's attention (n, T), the largest head's,
        of the newest token to all T.

        The prompt's own keys and values are in every row of the item.
        """
        count, step = tokens.shape
        start = self._prompts.ids.shape[1]
        rows = slice(first, first + count)
        fresh = new_cache()
        for number, layer in enumerate(self._cache.layers):
            fresh.update(layer.keys[rows, :, :start], layer.values[rows, :, :start], number)
        prompt = self._prompts.mask[item]
        positions = torch.arange(step, device=tokens.device) + prompt.sum() + self._shift[item]
        output = self._model.model(
            input_ids=tokens,
            attention_mask=torch.cat([prompt, prompt.new_ones(step)]).expand(count, -1),
            position_ids=positions.expand(count, -1),
            past_key_values=fresh,
            use_cache=True,
        )
        for layer, new in zip(self._cache.layers, fresh.layers, strict=True):
            layer.keys[rows, :, start : start + step] = new.keys[:, :, start:]
            layer.values[rows, :, start : start + step] = new.values[:, :, start:]
        past = torch.zeros_like(self._past[item])
        past[:start] = prompt.bool()
        past[start : start + step] = True
        self._past[item] = past
        assert self._call is not None
        attention = self._call.weights(self._call.logits())[:, :, 0].amax(1)
        return self.logits(output.last_hidden_state[:, -1]), attention[:, past[: start + step]]


def _picked(states: Tensor, row: Tensor, place: Tensor, before: int) -> Tensor:
    newest = states[row, :, before + place][:, :, None]
    return torch.cat([states[row, :, :before], newest], dim=2)
