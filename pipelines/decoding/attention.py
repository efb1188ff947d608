"""The language model's attention while it decodes.

Read the newest tokens' rows, or change one, layer by layer.

Each watched layer's attention module gets, for the time of a block, a copy of its configuration
that names this file's kernel; that kernel runs the module's own (whatever it is) and then shows its
newest rows. Nothing else changes, and the training-time tap of layer l stays underneath.
"""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines.decoding.prompts import Model

KERNEL = "medalign_decoding"


class Rows(NamedTuple):
    """One attention call.

    Query (B, H, T, c), key and value (B, H_k, K, c), the mask its kernel was given.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    window: int | None

    def logits(self, rows: int = 1) -> Tensor:
        """Logits (B, H, rows, K) of the last query rows before softmax, float32, -inf on hidden keys.

        The mask is None (causal), (B, K) of 1 for real tokens, or (B, 1, T, K), bool or additive.
        """
        keys = _repeated(self.key, self.query.shape[1]).float()
        logits = self.query[:, :, -rows:].float() @ keys.transpose(2, 3) * self.scaling
        length = keys.shape[2]
        if self.mask is not None and self.mask.ndim == 4:
            mask = self.mask[:, :, -rows:, :length]
            return (
                logits + mask.float()
                if mask.is_floating_point()
                else logits.masked_fill(~mask.bool(), -torch.inf)
            )
        if self.mask is not None:
            logits = logits.masked_fill(~self.mask[:, None, None, -length:].bool(), -torch.inf)
        place = torch.arange(length, device=logits.device)
        row = torch.arange(length - rows, length, device=logits.device)[:, None]
        hidden = place > row
        if self.window is not None:
            hidden = hidden | (place <= row - self.window)
        return logits.masked_fill(hidden, -torch.inf)

    def mixed(self, logits: Tensor) -> Tensor:
        """Output (B, rows, H, c) of rows whose logits are `logits`."""
        values = _repeated(self.value, self.query.shape[1]).float()
        return (torch.softmax(logits, dim=-1) @ values).transpose(1, 2)


# (layer, rows) -> changed logits (B, H, 1, K) of the newest row, or None to leave it alone
RowFunction = Callable[[int, Rows], Tensor | None]

_row_function: ContextVar[RowFunction | None] = ContextVar("row_function", default=None)


@contextmanager
def watching(model: Model, layers: Iterable[int], function: RowFunction) -> Iterator[None]:
    """Call `function` in every attention call of `layers` inside the block."""
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


def _kernel(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> Any:
    own, ours = module.decoding_watch
    function = _row_function.get()
    module.config = own  # kernels look their own name up in it
    try:
        output, weights = _own_kernel(module, own)(module, query, key, value, mask, **kwargs)
    finally:
        module.config = ours
    if function is not None:
        scaling = kwargs["scaling"] if kwargs.get("scaling") is not None else query.shape[3] ** -0.5
        rows = Rows(query, key, value, mask, scaling, kwargs.get("sliding_window"))
        changed = function(int(module.layer_idx), rows)
        if changed is not None:
            output = torch.cat(
                [output[:, :-1], rows.mixed(changed).to(output.dtype)], dim=1
            )  # (B, T, H, c)
    return output, weights


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
