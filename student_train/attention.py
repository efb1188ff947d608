"""What the losses see of the language model.

Hooks that rotate the image tokens and read layer l's question attention.

Nothing is renamed or replaced, so a checkpoint of the hooked model has the keys of the plain one.
Three hooks:

1. before the multimodal model: remember where the image tokens are (`input_ids == image_token_id`);
2. before decoder layer l: rotate those positions (Eq. 1) and keep the rotated tokens;
3. inside layer l's attention, through transformers' `AttentionInterface`: after the layer's own
kernel (SDPA, eager,
   FlashAttention) has run, compute the question rows again from the same query and key.

In the third, the softmax is over every visible key, and of the mean over heads and rows only the
image columns are kept: R x T numbers a head instead of T x T, in one layer instead of all.

A `Channel` carries the request of one forward pass to the hooks and the results back. It stays
until the next forward, because gradient checkpointing runs layer l again during the backward pass;
checkpointing must be non-reentrant, since the results are side outputs of the checkpointed layer.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

TAPPED = "medalign_tap"


class Request(NamedTuple):
    """Where in a batch (B, T) the losses look; P images, I question spans, at most R rows a span.

    An image may have several spans (one a turn) or none; a span belongs to one image.
    """

    image_sample: Tensor  # (P,) row of the batch
    image_columns: Tensor  # (P, N) positions of the image's tokens
    span_image: Tensor  # (I,) index into the images
    span_rows: Tensor  # (I, R) positions of the question tokens; short spans repeat their first row
    span_lengths: Tensor  # (I,) how many of the R rows are real

    def to(self, device: torch.device) -> "Request":
        """Move every tensor to `device`."""
        return Request(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass
class Channel:
    """The side channel of one model.

    What its hooks are asked for, and what they found, by layer.
    """

    image_token_id: int
    request: Request | None = None
    image_mask: Tensor | None = None  # (B, T) of the current forward
    given_mask: Tensor | None = None  # set by `image_positions`
    inside: bool = False
    spare_image: int = (
        0  # side in pixels of an empty image for forwards without one; only ZeRO-3 needs it
    )
    tokens: dict[int, Tensor] | None = None  # layer -> (P, N, d)
    attention: dict[int, Tensor] | None = None  # layer -> (I, N)


@dataclass
class Observed:
    """Results of one forward pass.

    Rotated image tokens (P, N, d) and question attention (I, N), by layer.
    """

    tokens: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, Tensor] = field(default_factory=dict)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the language model's decoder layers of a transformers image-text model."""
    return language_model(model).layers  # type: ignore[return-value]


def language_model(model: nn.Module) -> nn.Module:
    """Return the decoder inside a transformers image-text model."""
    return model.get_decoder()  # type: ignore[operator, no-any-return]


def install(
    model: nn.Module, rotations: nn.ModuleDict, layers: tuple[int, ...], image_token_id: int
) -> Channel:
    """Install the hooks on `model`, a plain image-text model with or without PEFT layers inside.

    Return their channel.

    Parameters
    ----------
    model
        Such as `LlavaForConditionalGeneration`; its `.model` merges image features into the
        embeddings.
    rotations
        Layer number as text -> `Rotation`; may be empty.
    layers
        The distillation layers; their attention is tapped.
    image_token_id
        Id of the placeholder that image features replace.

    Raises
    ------
    ValueError
        A layer outside 1..L-1: layer 0 has no output of a layer before it to rotate.
    """
    blocks = decoder_layers(model)
    for layer in layers:
        if not 1 <= layer < len(blocks):
            raise ValueError(
                f"layer {layer} is outside 1..{len(blocks) - 1} of this {len(blocks)}-layer model"
            )
    channel = Channel(image_token_id)
    model.model.register_forward_pre_hook(_Locate(channel), with_kwargs=True)  # type: ignore[union-attr]
    model.model.register_forward_hook(_Leave(channel), always_call=True)  # type: ignore[union-attr]
    language_model(model).register_forward_pre_hook(_Guard(channel), with_kwargs=True)
    for layer in layers:
        rotation = dict(rotations.items()).get(str(layer))
        blocks[layer].register_forward_pre_hook(_Rotate(channel, layer, rotation), with_kwargs=True)
        _tap(blocks[layer].self_attn, channel, layer)  # type: ignore[arg-type]
    return channel


@contextmanager
def observing(channel: Channel, request: Request) -> Iterator[Observed]:
    """Ask the forward passes inside the block for `request`.

    The results are in the yielded object.
    """
    observed = Observed()
    channel.request, channel.tokens, channel.attention = (
        request,
        observed.tokens,
        observed.attention,
    )
    try:
        yield observed
    finally:
        # The request itself stays: checkpointing recomputes layer l in the backward pass and must
        # do the same work.
        channel.tokens = channel.attention = None


@contextmanager
def image_positions(channel: Channel, mask: Tensor | None) -> Iterator[None]:
    """Say where image tokens are, mask (B, T) bool, for forwards that are given embeddings instead of token ids."""
    channel.given_mask = mask
    try:
        yield
    finally:
        channel.given_mask = None


def question_attention(
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    window: int | None,
    request: Request,
) -> Tensor:
    """Attention of question spans over image patches, mean over heads and rows, (I, N), float32.

    Parameters
    ----------
    query, key
        (B, H, T, c) and (B, H_k, T, c) with H a multiple of H_k, rotary embedding applied.
    attention_mask
        What the kernel was given: None (causal), (B, T) of 1 for real tokens, or (B, 1, T, T), bool
        or additive.
    scaling
        Factor on the logits.
    window
        Sliding window of the layer, for the two mask forms that do not say it; None for none.
    request
        The rows and columns wanted.
    """
    sample = request.image_sample[request.span_image]  # (I,)
    rows, heads, groups = request.span_rows, query.shape[1], key.shape[1]
    spans, width, length = rows.shape[0], query.shape[3], key.shape[2]
    with torch.autocast(query.device.type, enabled=False):
        q = query[sample.unsqueeze(1), :, rows].float()  # (I, R, H, c)
        q = q.view(spans, -1, groups, heads // groups, width).permute(0, 2, 3, 1, 4)
        k = key[sample].float()
        logits = torch.matmul(q.reshape(spans, groups, -1, width) * scaling, k.transpose(2, 3))
        logits = logits.view(spans, heads, -1, length)
        hidden = _hidden_keys(attention_mask, sample, rows, length, window)
        logits = (
            logits + hidden
            if hidden.is_floating_point()
            else logits.masked_fill(hidden, -torch.inf)
        )
        weights = logits.softmax(3).flatten(1, 2)  # (I, H R, T)
        real = torch.arange(rows.shape[1], device=rows.device) < request.span_lengths.unsqueeze(1)
        share = (real / (heads * request.span_lengths.unsqueeze(1))).repeat(
            1, heads
        )  # (I, H R), sums to 1
        # Mean first, columns afterwards: picking N of T numbers is then done once instead of H R
        # times.
        mean = torch.bmm(share.unsqueeze(1), weights).squeeze(1)  # (I, T)
        return mean.gather(1, request.image_columns[request.span_image])


def _hidden_keys(
    mask: Tensor | None, sample: Tensor, rows: Tensor, length: int, window: int | None
) -> Tensor:
    """Which keys each question row may not see, (I, 1, R, T).

    True, or an additive term where the mask is one.
    """
    if mask is not None and mask.ndim == 4:
        rows_of_mask = mask[sample.unsqueeze(1), 0, rows, :length].unsqueeze(1)
        return rows_of_mask.float() if mask.is_floating_point() else ~rows_of_mask.bool()
    positions = torch.arange(length, device=rows.device)
    hidden = positions > rows.unsqueeze(2)
    if window is not None:
        hidden = hidden | (positions <= rows.unsqueeze(2) - window)
    if mask is not None:
        hidden = hidden | ~mask[sample, :length].bool().unsqueeze(1)
    return hidden.unsqueeze(1)


class _Locate:
    """Before the multimodal model: find the image tokens."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        channel = self.channel
        channel.inside = True
        if (
            channel.tokens is None
        ):  # nobody observes this pass: a request left for an earlier backward pass is over
            channel.request = None
        if channel.given_mask is not None:
            channel.image_mask = channel.given_mask
        elif ids is not None:
            channel.image_mask = ids == channel.image_token_id
        elif kwargs["inputs_embeds"].shape[1] > 1:
            channel.inside = False
            raise ValueError(_UNKNOWN)
        else:
            channel.image_mask = None
        without = kwargs.get("pixel_values") is None and kwargs.get("mm_encoder_outputs") is None
        if channel.spare_image and without and ids is not None and ids.shape[1] > 1:
            _encode_nothing(module, channel.spare_image, ids.device)


def _encode_nothing(module: nn.Module, side: int, device: torch.device) -> None:
    """Run tower and projector on an empty image.

    ZeRO-3 gathers their weights on all ranks at once, or hangs.
    """
    dtype = next(one.dtype for one in module.parameters() if one.is_floating_point())
    with torch.no_grad():
        module.get_image_features(torch.zeros(1, 3, side, side, dtype=dtype, device=device))  # type: ignore[operator]


class _Leave:
    """After the multimodal model."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def __call__(self, *_: Any) -> None:
        self.channel.inside = False


class _Guard:
    """Before the language model.

    Refuse a direct call that would leave image tokens where the last batch had them.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        channel = self.channel
        if channel.inside:
            return
        embeddings = kwargs.get("inputs_embeds")
        if channel.given_mask is not None:
            channel.image_mask = channel.given_mask
        elif embeddings is not None and embeddings.shape[1] > 1:
            raise ValueError(_UNKNOWN)
        else:
            channel.image_mask = None  # token ids of text alone, or one decoded token


_UNKNOWN = "embeddings do not show where image tokens are; wrap the call in student_train.attention.image_positions"


class _Rotate:
    """Before layer l: rotate the image tokens, keep them for the loss."""

    def __init__(self, channel: Channel, layer: int, rotation: nn.Module | None) -> None:
        # A plain attribute of a plain object: the rotation is registered once, at the model's top.
        self.channel, self.layer, self.rotation = channel, layer, rotation

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        hidden = args[0] if args else kwargs["hidden_states"]
        mask = self.channel.image_mask
        # A decoding step carries no image: the rotated keys and values are in the cache already.
        if mask is None or mask.shape != hidden.shape[:2]:
            return None
        # While training, W takes part even without an image: its gradient is awaited on all ranks,
        # and ZeRO-3 gathers it on all of them at once.
        always = module.training or self.channel.spare_image > 0
        if self.rotation is not None and (always or bool(mask.any())):
            # By whole rows: indexing element by element costs several times as much, most of all in
            # the backward pass.
            rows, flat = mask.to(hidden.device).flatten().nonzero().squeeze(1), hidden.flatten(0, 1)
            rotated = self.rotation(flat.index_select(0, rows)).to(hidden.dtype)
            hidden = flat.index_copy(0, rows, rotated).view_as(hidden)
        request = self.channel.request
        if request is not None and self.channel.tokens is not None:
            rows = (
                request.image_sample.unsqueeze(1) * hidden.shape[1] + request.image_columns
            )  # (P, N)
            tokens = hidden.flatten(0, 1).index_select(0, rows.flatten())
            self.channel.tokens[self.layer] = tokens.view(*rows.shape, -1)
        return (
            ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})
        )


class _Tap(NamedTuple):
    """What a tapped attention module carries: its channel, its layer and its own configuration."""

    channel: Channel
    layer: int
    own: Any


def _tap(attention: nn.Module, channel: Channel, layer: int) -> None:
    """Send one attention module through `_tapped_attention`.

    Masks and all other layers keep the model's own kernel.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(TAPPED, _tapped_attention)
    own = attention.config
    tapped = copy.copy(own)
    tapped._attn_implementation_internal = TAPPED  # type: ignore[union-attr]
    attention.alignment_tap = _Tap(channel, layer, own)  # type: ignore[assignment]
    attention.config = tapped


def _tapped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Any:
    tap: _Tap = module.alignment_tap  # type: ignore[assignment]
    before = module.config
    module.config = tap.own  # kernels look their own name up in it
    try:
        output = _kernel(module, tap.own._attn_implementation)(
            module, query, key, value, attention_mask, **kwargs
        )
    finally:
        module.config = before
    channel = tap.channel
    if channel.request is not None:
        _read(channel, tap.layer, query, key, attention_mask, kwargs)
    return output


def _read(
    channel: Channel,
    layer: int,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
) -> None:
    """Compute the question attention.

    During a recomputation for the backward pass the result is not kept.
    """
    request = channel.request
    if request is None or not len(request.span_image) or query.shape[2] == 1:
        return
    if query.shape[2] != key.shape[2]:
        raise ValueError(
            "question attention is read from whole sequences, not from a forward with cached keys"
        )
    scaling = kwargs["scaling"] if kwargs.get("scaling") is not None else query.shape[3] ** -0.5
    found = question_attention(query, key, mask, scaling, kwargs.get("sliding_window"), request)
    if channel.attention is not None:
        channel.attention[layer] = found


def _kernel(module: nn.Module, implementation: str) -> Callable[..., Any]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if implementation == "eager":  # each model file has its own
        return sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[no-any-return]
    return ALL_ATTENTION_FUNCTIONS[implementation]  # type: ignore[no-any-return]
