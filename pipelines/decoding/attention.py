"""The language model's attention while it decodes: read the newest token's row, or change it, layer by layer.

Each watched layer's attention module gets, for the time of a block, a copy of its configuration that names this file's
kernel; that kernel runs the module's own (whatever it is) and then looks at one row. Nothing else changes, and the
training-time tap of layer l stays underneath.
"""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from pipelines.decoding.prompts import Model

KERNEL = "medalign_decoding"

# (layer, logits (B, H, 1, K) of the newest query row before softmax) -> changed logits, or None to leave the row alone
RowFunction = Callable[[int, Tensor], Tensor | None]

_row_function: ContextVar[RowFunction | None] = ContextVar("row_function", default=None)


@contextmanager
def watching(model: Model, layers: Iterable[int], function: RowFunction) -> Iterator[None]:
    """Call `function` with the newest query row of each of `layers` in every forward pass inside the block."""
    from transformers import AttentionInterface

    AttentionInterface.register(KERNEL, _kernel)
    modules = [model.get_decoder().layers[layer].self_attn for layer in layers]
    for module in modules:
        ours = copy.copy(module.config)
        ours._attn_implementation_internal = KERNEL
        module.decoding_watch = (module.config, ours)
        module.config = ours
    token = _row_function.set(function)
    try:
        yield
    finally:
        _row_function.reset(token)
        for module in modules:
            module.config, _ = module.decoding_watch
            del module.decoding_watch


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave every row alone inside the block (the contrast pass within a watched generation)."""
    token = _row_function.set(None)
    try:
        yield
    finally:
        _row_function.reset(token)


def _kernel(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    own, ours = module.decoding_watch
    function = _row_function.get()
    module.config = own
    try:
        output, weights = _own_kernel(module, own)(module, query, key, value, mask, **kwargs)
    finally:
        module.config = ours
    if function is None:
        return output, weights
    scaling = kwargs["scaling"] if kwargs.get("scaling") is not None else query.shape[3] ** -0.5
    logits = row_logits(query, key, mask, scaling, kwargs.get("sliding_window"))
    changed = function(int(module.layer_idx), logits)
    if changed is not None:
        row = torch.softmax(changed, dim=-1) @ _repeated(value, query.shape[1]).float()  # (B, H, 1, c)
        output = torch.cat([output[:, :-1], row.transpose(1, 2).to(output.dtype)], dim=1)  # (B, T, H, c)
    return output, weights


def row_logits(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, window: int | None) -> Tensor:
    """Attention logits (B, H, 1, K) of the last query row in float32, -inf on hidden keys.

    `query` (B, H, T, c), `key` (B, H_k, K, c); `mask` as its kernel takes it: None, (B, K), or (B, 1, T, K), bool or
    additive.
    """
    logits = query[:, :, -1:].float() @ _repeated(key, query.shape[1]).float().transpose(2, 3) * scaling
    length = key.shape[2]
    if mask is not None and mask.ndim == 4:
        row = mask[:, :, -1:, :length]
        return logits + row.float() if mask.is_floating_point() else logits.masked_fill(~row.bool(), -torch.inf)
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None, -length:].bool(), -torch.inf)
    if window is not None and window < length:
        logits[..., : length - window] = -torch.inf
    return logits


def _repeated(heads: Tensor, wanted: int) -> Tensor:
    """Repeat grouped key or value heads (B, H_k, K, c) to (B, wanted, K, c)."""
    return heads.repeat_interleave(wanted // heads.shape[1], dim=1)


def _own_kernel(module: Any, config: Any) -> Callable[..., Any]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = config._attn_implementation
    kernel: Callable[..., Any] = (  # each model file has its own eager one
        sys.modules[type(module).__module__].eager_attention_forward
        if name == "eager"
        else ALL_ATTENTION_FUNCTIONS[name]
    )
    return kernel
