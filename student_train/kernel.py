"""The one tap on attention: a module's query, key, value and mask, and the logits of its rows.

B rows of a batch, H heads (H_k of keys), T tokens, Q the newest of them, I spans, R rows,
c width of a head.

A tapped module gets a copy of its configuration that names this file's kernel. That kernel runs
the module's own, whatever it is (SDPA, eager, FlashAttention), and then shows the call to each
listener. Masks and all other modules keep the model's own kernel. The losses listen at layer l
(`student_train.attention`), decoding methods where they look (`pipelines.decoding.attention`); both
may listen to one module.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from shared.errors import UserError
from student_train.upstream import AttentionConfig, kernel_of, register_kernel, with_kernel

TAPPED = "medalign_tap"
# What a kernel is given besides and that leaves the logits as they are.
_PLAIN = (
    "dropout",
    "position_ids",
    "cache_position",
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "use_cache",
    "logits_to_keep",
    "num_items_in_batch",
    "deterministic",
    "target_dtype",
)


class AttentionCall(NamedTuple):
    """One call of an attention kernel.

    Attributes
    ----------
    query, key, value
        (B, H, Q, c) and (B, H_k, T, c) with H a multiple of H_k, rotary embedding applied.
    mask
        What the kernel was given: None (causal), (B, T) of 1 for real tokens, or (B, 1, Q, T), bool
        or additive.
    scaling
        Factor on the logits.
    window
        Sliding window of the layer, for the two mask forms that do not say it; None for none.
    softcap
        Logits x become softcap tanh(x / softcap) before the mask (Gemma 2); None for none.
    sinks
        (H,) a logit beside the keys' in each head's softmax, without a value (gpt-oss); None for
        none.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    window: int | None
    softcap: float | None = None
    sinks: Tensor | None = None

    def logits(self, count: int = 1) -> Tensor:
        """Logits (B, H, count, T) of the newest rows before softmax; see `logits_of`."""
        batch, _, queries, _ = self.query.shape
        sample = torch.arange(batch, device=self.query.device)
        newest = torch.arange(queries - count, queries, device=self.query.device)
        rows = newest.expand(batch, -1)
        return self._logits(self.query[:, :, -count:], self.key, sample, rows)

    def logits_of(self, sample: Tensor, rows: Tensor) -> Tensor:
        """Logits (I, H, R, T) before softmax, float32, -inf on hidden keys.

        `sample` (I,) names rows of the batch, `rows` (I, R) positions among the Q queries of each.
        """
        query = self.query[sample.unsqueeze(1), :, rows].transpose(1, 2)
        return self._logits(query, self.key[sample], sample, rows)

    def _logits(self, query: Tensor, key: Tensor, sample: Tensor, rows: Tensor) -> Tensor:
        """Logits of `query` (I, H, R, c) on `key` (I, H_k, T, c); no head's keys are copied."""
        spans, heads, count, width = query.shape
        with torch.autocast(query.device.type, enabled=False):
            flat = query.float().reshape(spans, key.shape[1], -1, width) * self.scaling
            logits = torch.matmul(flat, key.float().transpose(2, 3)).view(spans, heads, count, -1)
            if self.softcap is not None:
                logits = self.softcap * torch.tanh(logits / self.softcap)
            hidden = self._hidden(sample, rows)
            if hidden.is_floating_point():
                return logits + hidden
            return logits.masked_fill(hidden, -torch.inf)

    def _hidden(self, sample: Tensor, rows: Tensor) -> Tensor:
        """Which keys each row may not see, (I, 1, R, T); an additive term where the mask is one."""
        length, mask = self.key.shape[2], self.mask
        if mask is not None and mask.ndim == 4:
            shown = mask[sample.unsqueeze(1), 0, rows, :length].unsqueeze(1)
            return shown.float() if mask.is_floating_point() else ~shown.bool()
        places = torch.arange(length, device=rows.device)
        own = (rows + length - self.query.shape[2]).unsqueeze(2)  # the queries are the last keys
        hidden = places > own
        if self.window is not None:
            hidden = hidden | (places <= own - self.window)
        if mask is not None:
            hidden = hidden | ~mask[sample, -length:].bool().unsqueeze(1)
        return hidden.unsqueeze(1)

    def weights(self, logits: Tensor) -> Tensor:
        """Return the attention (I, H, R, T) of rows with these logits; sinks take their share."""
        if self.sinks is None:
            return logits.softmax(3)
        sinks = self.sinks.float().view(1, -1, 1, 1).expand(*logits.shape[:3], 1)
        return torch.cat([logits, sinks], dim=3).softmax(3)[..., :-1]

    def mixed(self, logits: Tensor) -> Tensor:
        """Output (B, R, H, c) of rows whose logits are `logits` (B, H, R, T)."""
        batch, heads, rows, _ = logits.shape
        grouped = self.weights(logits).reshape(batch, self.value.shape[1], -1, logits.shape[3])
        return (grouped @ self.value.float()).view(batch, heads, rows, -1).transpose(1, 2)


# A listener looks at a call; what it returns replaces the logits (B, H, R, T) of the newest R rows.
Listener = Callable[[AttentionCall], Tensor | None]


@dataclass
class _Taps:
    """What a tapped module carries: its own configuration, the copy in its place, who listens."""

    own: AttentionConfig
    copy: AttentionConfig
    listeners: list[Listener] = field(default_factory=list)


@runtime_checkable
class _Tapped(Protocol):
    config: AttentionConfig
    attention_taps: _Taps


def tap(module: nn.Module, listener: Listener) -> Callable[[], None]:
    """Show every call of an attention module to `listener`; return the function that ends it."""
    attention = cast(_Tapped, module)
    if not hasattr(attention, "attention_taps"):
        register_kernel(TAPPED, _kernel)
        own = attention.config
        attention.attention_taps = _Taps(own, with_kernel(own, TAPPED))
        attention.config = attention.attention_taps.copy
    taps = attention.attention_taps
    taps.listeners.append(listener)

    def release() -> None:
        taps.listeners.remove(listener)
        if not taps.listeners:
            attention.config = taps.own
            del attention.attention_taps

    return release


def _kernel(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: object,
) -> tuple[Tensor, Tensor | None]:
    attention = cast(_Tapped, module)
    taps = attention.attention_taps
    attention.config = taps.own  # kernels look their own name up in it
    try:
        output, weights = kernel_of(module, taps.own)(
            module,
            query,
            key,
            value,
            mask,
            scaling=scaling,
            sliding_window=sliding_window,
            **options,
        )
    finally:
        attention.config = taps.copy
    factor = query.shape[3] ** -0.5 if scaling is None else scaling
    softcap, sinks = _logit_options(module, options)
    call = AttentionCall(query, key, value, mask, factor, sliding_window, softcap, sinks)
    for listener in taps.listeners:
        logits = listener(call)
        if logits is not None:
            rows = call.mixed(logits).to(output.dtype)  # (B, R, H, c)
            output = torch.cat([output[:, : -rows.shape[1]], rows], dim=1)
    return output, weights


def _logit_options(
    module: nn.Module, options: Mapping[str, object]
) -> tuple[float | None, Tensor | None]:
    """Return softcap and sinks of a call; what else may change logits is refused."""
    unknown = sorted(
        name for name, value in options.items() if value is not None and name not in _PLAIN
    )
    unknown = [name for name in unknown if name not in ("softcap", "s_aux")]
    if unknown:
        raise UserError(
            f"{type(module).__name__} computes its attention with {', '.join(unknown)}, which the "
            "attention loss does not know; set losses.beta=0 or use another model"
        )
    softcap, sinks = options.get("softcap"), options.get("s_aux")
    return (
        float(softcap) if isinstance(softcap, int | float) else None,
        sinks if isinstance(sinks, Tensor) else None,
    )
