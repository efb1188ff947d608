"""What the losses see of the language model: rotated image tokens, layer l's question attention.

B rows of a batch, T tokens, P images, N patches, d student width, I spans, R rows, H heads.

Nothing is renamed or replaced, so a checkpoint of the hooked model has the keys of the plain one.
Three hooks:

1. before the multimodal model: remember where the image tokens are (`input_ids == image_token_id`);
2. before decoder layer l: rotate those positions (Eq. 1) and keep the rotated tokens;
3. inside layer l's attention, through `student_train.kernel`: after the layer's own kernel has run,
   compute the question rows again from the same query and key.

In the third, the softmax is over every visible key, and of the mean over heads and rows only the
image columns are kept: R x T numbers a head instead of T x T, in one layer instead of all.

A `Channel` carries the request of one forward pass to the hooks and the results back. It stays
until the next forward, because gradient checkpointing runs layer l again during the backward pass;
checkpointing must be non-reentrant, since the results are side outputs of the checkpointed layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shared.errors import UserError
from student_train.imagetext import ImageTextModel, Inputs, Multimodal, cached, entering
from student_train.kernel import AttentionCall, tap


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
    # Side in pixels of an empty image for forwards without one; only ZeRO-3 needs it.
    spare_image: int = 0
    spare_due: bool = False  # whether the current forward still has to encode one
    tokens: dict[int, Tensor] | None = None  # layer -> (P, N, d)
    attention: dict[int, Tensor] | None = None  # layer -> (I, N)


@dataclass
class Observed:
    """Results of one forward pass.

    Rotated image tokens (P, N, d) and question attention (I, N), by layer.
    """

    tokens: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, Tensor] = field(default_factory=dict)


def install(
    model: ImageTextModel, rotations: nn.ModuleDict, layers: tuple[int, ...], image_token_id: int
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
    decoder = model.get_decoder()
    blocks = decoder.layers
    for layer in layers:
        if not 1 <= layer < len(blocks):
            raise ValueError(
                f"layer {layer} is outside 1..{len(blocks) - 1} of this {len(blocks)}-layer model"
            )
    channel = Channel(image_token_id)
    model.model.register_forward_pre_hook(_Locate(channel), with_kwargs=True)
    model.model.register_forward_hook(_Leave(channel), always_call=True)
    decoder.register_forward_pre_hook(_Guard(channel, model.model), with_kwargs=True)
    for layer in layers:
        rotation = dict(rotations.items()).get(str(layer))
        blocks[layer].register_forward_pre_hook(_Rotate(channel, layer, rotation), with_kwargs=True)
        tap(blocks[layer].self_attn, _Read(channel, layer))
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
    """Say where image tokens are, mask (B, T) bool, for forwards given embeddings, not ids."""
    channel.given_mask = mask
    try:
        yield
    finally:
        channel.given_mask = None


def question_attention(call: AttentionCall, request: Request) -> Tensor:
    """Attention of question spans over image patches, mean over heads and rows, (I, N), float32."""
    sample, rows = request.image_sample[request.span_image], request.span_rows
    columns = request.image_columns[request.span_image]
    if call.window is not None and bool((rows.amax(1) - columns[:, 0] >= call.window).any()):
        raise UserError(
            f"a question sees only a part of its image, or nothing: layer losses.layer sees "
            f"{call.window} tokens back; choose a losses.layer with full attention, or shorter "
            "questions"
        )
    heads = call.query.shape[1]
    with torch.autocast(call.query.device.type, enabled=False):
        weights = call.weights(call.logits_of(sample, rows)).flatten(1, 2)  # (I, H R, T)
        lengths = request.span_lengths.unsqueeze(1)
        real = torch.arange(rows.shape[1], device=rows.device) < lengths
        share = (real / (heads * lengths)).repeat(1, heads)  # (I, H R), sums to 1
        # Mean first, columns afterwards: picking N of T numbers is then done once instead of H R
        # times.
        mean = torch.bmm(share.unsqueeze(1), weights).squeeze(1)  # (I, T)
        return mean.gather(1, columns)


class _Locate:
    """Before the multimodal model: find the image tokens."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def __call__(self, module: Multimodal, args: tuple[object, ...], kwargs: Inputs) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        channel = self.channel
        channel.inside = True
        if channel.tokens is None:
            # Nobody observes this pass: a request left for an earlier backward pass is over.
            channel.request = None
        if channel.given_mask is not None:
            channel.image_mask = channel.given_mask
        elif isinstance(ids, Tensor):
            channel.image_mask = ids == channel.image_token_id
        elif _places(kwargs) > 1:
            channel.inside = False
            raise ValueError(_UNKNOWN)
        else:
            channel.image_mask = None
        without = kwargs.get("pixel_values") is None and not kwargs.get("mm_encoder_outputs")
        prompt = isinstance(ids, Tensor) and ids.shape[1] > 1
        # Cached keys hold the image already.
        begins = channel.given_mask is None and not cached(kwargs)
        places = channel.image_mask if begins and without and prompt else None
        if places is not None and bool(places.any()):
            channel.inside = False
            raise UserError(
                "the prompt has places for an image, but no image came with it; give its pixels, "
                "or ask without <image>"
            )
        channel.spare_due = bool(channel.spare_image) and without and prompt


def _places(kwargs: Inputs) -> int:
    """Count the positions of embeddings (B, T, d) that are given instead of token ids."""
    embeddings = kwargs.get("inputs_embeds")
    return embeddings.shape[1] if isinstance(embeddings, Tensor) else 0


def _encode_nothing(module: Multimodal, side: int, device: torch.device) -> None:
    """Run tower and projector on an empty image.

    ZeRO-3 gathers their weights on all ranks at once, or hangs; in one order too: the embedding's
    first, the tower's, the projector's, the decoder's.
    """
    dtype = next(one.dtype for one in module.parameters() if one.is_floating_point())
    with torch.no_grad():
        module.get_image_features(torch.zeros(1, 3, side, side, dtype=dtype, device=device))


class _Leave:
    """After the multimodal model."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def __call__(self, *_: object) -> None:
        self.channel.inside = False


class _Guard:
    """Before the language model.

    Refuse a direct call that would leave image tokens where the last batch had them. Encode the
    empty image of a forward without one, at the place where the model would encode its own.
    """

    def __init__(self, channel: Channel, multimodal: Multimodal) -> None:
        self.channel, self.multimodal = channel, multimodal

    def __call__(self, module: nn.Module, args: tuple[object, ...], kwargs: Inputs) -> None:
        channel = self.channel
        if channel.inside:
            if channel.spare_due:
                channel.spare_due = False
                hidden = kwargs.get("inputs_embeds", args[0] if args else None)
                device = hidden.device if isinstance(hidden, Tensor) else torch.device("cpu")
                _encode_nothing(self.multimodal, channel.spare_image, device)
            return
        if channel.given_mask is not None:
            channel.image_mask = channel.given_mask
        elif _places(kwargs) > 1:
            raise ValueError(_UNKNOWN)
        else:
            channel.image_mask = None  # token ids of text alone, or one decoded token


_UNKNOWN = (
    "embeddings do not show where image tokens are; wrap the call in "
    "student_train.attention.image_positions"
)


class _Rotate:
    """Before layer l: rotate the image tokens, keep them for the loss."""

    def __init__(self, channel: Channel, layer: int, rotation: nn.Module | None) -> None:
        # A plain attribute of a plain object: the rotation is registered once, at the model's top.
        self.channel, self.layer, self.rotation = channel, layer, rotation

    def __call__(
        self, module: nn.Module, args: tuple[object, ...], kwargs: Inputs
    ) -> tuple[tuple[object, ...], Inputs] | None:
        hidden = entering(args, kwargs)
        mask = self.channel.image_mask
        # A decoding step carries no image: the rotated keys and values are in the cache already.
        if mask is None or mask.shape != hidden.shape[:2]:
            return None
        # While training, W takes part even without an image: its gradient is awaited on all ranks,
        # and ZeRO-3 gathers it on all of them at once.
        always = module.training or self.channel.spare_image > 0
        if self.rotation is not None and (always or bool(mask.any())):
            hidden = _rotated(hidden, mask, self.rotation)
        self._keep(hidden)
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    def _keep(self, hidden: Tensor) -> None:
        """Keep the image tokens (P, N, d) that are asked for."""
        request, kept = self.channel.request, self.channel.tokens
        if request is None or kept is None:
            return
        rows = request.image_sample.unsqueeze(1) * hidden.shape[1] + request.image_columns  # (P, N)
        tokens = hidden.flatten(0, 1).index_select(0, rows.flatten())
        kept[self.layer] = tokens.view(*rows.shape, -1)


def _rotated(hidden: Tensor, mask: Tensor, rotation: nn.Module) -> Tensor:
    """Rotate the image tokens of hidden states (B, T, d), where `mask` (B, T) is True.

    By whole rows: indexing element by element costs several times as much, most of all in the
    backward pass.
    """
    rows, flat = mask.to(hidden.device).flatten().nonzero().squeeze(1), hidden.flatten(0, 1)
    rotated = rotation(flat.index_select(0, rows)).to(hidden.dtype)
    return flat.index_copy(0, rows, rotated).view_as(hidden)


class _Read:
    """In layer l's attention: compute the question rows that are asked for."""

    def __init__(self, channel: Channel, layer: int) -> None:
        self.channel, self.layer = channel, layer

    def __call__(self, call: AttentionCall) -> None:
        request = self.channel.request
        if request is None or not len(request.span_image) or call.query.shape[2] == 1:
            return
        if call.query.shape[2] != call.key.shape[2]:
            raise ValueError(
                "question attention is read from whole sequences, not from a forward with cached "
                "keys"
            )
        found = question_attention(call, request)
        # A recomputation for the backward pass does the same work, but its result is not kept.
        if self.channel.attention is not None:
            self.channel.attention[self.layer] = found
