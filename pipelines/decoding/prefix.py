"""The prompt's keys and values, computed once.

For all beams of an item, and for all methods that decode it.

Everything but the last token is kept, so that every method still makes that token's step itself,
with its own hooks on layers, attention or head in place.

B prompts, H_k heads of keys, T tokens, c width of a head.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pipelines.decoding.attention import undisturbed
from pipelines.decoding.prompts import Model, Prompts, places


@runtime_checkable
class CachedLayer(Protocol):
    """Keys and values (B, H_k, T, c) of one layer."""

    keys: Tensor
    values: Tensor


@runtime_checkable
class Cache(Protocol):
    """A transformers cache: what is kept of every layer's keys and values."""

    layers: Sequence[CachedLayer]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> object:
        """Append keys and values to one layer."""
        ...

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        ...


def prefilled(model: Model, prompts: Prompts) -> Prompts:
    """Return the prompts with the keys and values of all their tokens but the last.

    Those that have them unchanged.
    """
    if prompts.prefix is not None:
        return prompts
    with undisturbed():
        return prefilled_so(model, prompts)


def prefilled_so(model: Model, prompts: Prompts) -> Prompts:
    """Return the prompts with the keys and values that they have under the hooks of a method."""
    cache = new_cache()
    mask = prompts.mask[:, :-1]
    positions, _ = places(model, prompts.ids, prompts.mask)
    with torch.no_grad():
        model.model(
            **prompts.model_inputs() | {"input_ids": prompts.ids[:, :-1], "attention_mask": mask},
            position_ids=positions[..., :-1],
            past_key_values=cache,
            use_cache=True,
        )
    return replace(prompts, prefix=tuple((layer.keys, layer.values) for layer in cache.layers))


def prefix_cache(model: Model, prompts: Prompts, copies: int = 1) -> Cache:
    """Return a fresh cache of the prompts' prefix, each row `copies` times in succession."""
    ready = prefilled(model, prompts)
    assert ready.prefix is not None
    cache = new_cache()
    for layer, (keys, values) in enumerate(ready.prefix):
        cache.update(keys, values, layer)  # concatenates, so that the prefix itself never changes
    if copies > 1:
        cache.batch_repeat_interleave(copies)
    return cache


def new_cache() -> Cache:
    """Return an empty cache that keeps every token of every layer.

    Layers with a sliding window mask what lies before it: the prompt is then in the cache whole,
    for every method, beam and copy.
    """
    from transformers import DynamicCache

    cache: Cache = DynamicCache()
    return cache
