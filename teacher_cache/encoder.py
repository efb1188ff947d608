"""One pass of the teacher for both targets: E_v and E_a of its last block.

Every block runs on fused attention, which never forms the weights. Of the last block only the CLS
row is wanted: softmax(q_cls K^T / sqrt(c)) is one 1 x (M+1) product a head, computed from that
block's own normalised input.

B images of a batch, M patches, T tokens (CLS first), b or d teacher width, c width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from teacher_cache.teachers.base import Teacher
from teacher_cache.teachers.open_clip_models import OpenClipViT
from teacher_cache.teachers.timm_maps import TimmMap
from teacher_cache.teachers.timm_models import TimmViT
from teacher_cache.teachers.transformers_models import TransformersViT


class Encoded(NamedTuple):
    """E_v (B, M, b), the last block's patch tokens before the final norm.

    E_a (B, M), its CLS attention, head mean; None of a teacher whose `attention` is `none`.
    `query` (B, M, r): what a question is asked of, of a teacher with a `readout`.
    """

    tokens: Tensor
    attention: Tensor | None
    query: Tensor | None = None


@torch.inference_mode()
def encode(
    teacher: Teacher, pixels: Float[Tensor, "B 3 size size"], features: str = "block"
) -> Encoded:
    """Run the teacher once over a batch.

    Parameters
    ----------
    pixels
        Normalised as `teacher.preprocessing` says, on the model's device and in its dtype.
    features
        `block`, or `projected`: after the final norm and projection, as the authors did for
        BiomedCLIP.

    Returns
    -------
    Encoded
        Tokens in the model's dtype, attention in float32; raw weights, not renormalised over the
        patches.
    """
    weights: Tensor | None = None
    query: Tensor | None = None
    if isinstance(teacher.model, TimmMap):
        tokens = teacher.model(pixels)
    elif isinstance(teacher.model, TransformersViT):
        tokens, weights = teacher.model(pixels)
    elif teacher.readout is None:
        tokens, weights = _observed(teacher.model, pixels)
    else:
        entering: list[Tensor] = []
        with _entering(teacher.model, teacher.readout.depth, entering):
            tokens, weights = _observed(teacher.model, pixels)
        query = teacher.readout(entering, tokens).float()
    tokens = tokens[:, -teacher.grid.size :]
    if features == "projected":
        if teacher.project is None:
            raise ValueError(f"teacher {teacher.name} has no projection")
        tokens = teacher.project(tokens)
    if weights is None or teacher.attention == "none":
        return Encoded(tokens, None, query)
    return Encoded(tokens, weights[:, -teacher.grid.size :], query)


@contextmanager
def _entering(model: nn.Module, depth: int, caught: list[Tensor]) -> Iterator[None]:
    """Catch what enters the last `depth` blocks, (B, T, b) each, in their order."""
    blocks = list(
        cast("TimmViT", model).blocks
        if hasattr(model, "blocks")
        else cast("OpenClipViT", model).transformer.resblocks
    )[-depth:]

    def catch(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> None:
        x = args[0] if args else cast("Tensor", kwargs["q_x"])
        first = getattr(module.get_submodule("attn"), "batch_first", True)
        caught.append(x if first else x.transpose(0, 1))

    hooks = [block.register_forward_pre_hook(catch, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _observed(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last block's tokens (B, T, b) and CLS row (B, T) of timm's ViT or open_clip's."""
    block, attention = _last_block(model)
    caught: dict[str, Tensor] = {}

    def catch_input(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> None:
        caught["input"] = args[0] if args else cast("Tensor", kwargs["query"])

    def catch_output(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        caught["output"] = output

    hooks = [
        attention.register_forward_pre_hook(catch_input, with_kwargs=True),
        block.register_forward_hook(catch_output),
    ]
    try:
        model(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    if not getattr(
        attention, "batch_first", True
    ):  # open_clip's tower as it is loaded: (T, B, d) inside
        caught = {name: tensor.transpose(0, 1).contiguous() for name, tensor in caught.items()}
    return caught["output"], _cls_attention(attention, caught["input"])


def _last_block(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return last block and its attention, of timm's ViT or open_clip's."""
    if hasattr(model, "blocks"):
        block = cast("TimmViT", model).blocks[-1]
    else:
        block = cast("OpenClipViT", model).transformer.resblocks[-1]
    return block, block.get_submodule("attn")


class TimmAttention(Protocol):
    """What is read of timm's `Attention`: one stacked projection, perhaps norms on q and k."""

    attn_dim: int
    num_heads: int
    qkv: nn.Linear
    q_norm: nn.Module
    k_norm: nn.Module


def _cls_attention(attention: nn.Module, x: Tensor) -> Tensor:
    """Softmax of the CLS row over all tokens, mean over heads, (B, T) float32.

    From the module's input x (B, T, d).
    """
    if isinstance(attention, nn.MultiheadAttention):  # open_clip: one stacked in-projection
        q, k = _cls_query_and_keys(
            x,
            attention.embed_dim,
            attention.num_heads,
            cast("Tensor", attention.in_proj_weight),
            attention.in_proj_bias,
        )
    else:
        timm = cast("TimmAttention", attention)
        q, k = _cls_query_and_keys(x, timm.attn_dim, timm.num_heads, timm.qkv.weight, timm.qkv.bias)
        q, k = timm.q_norm(q), timm.k_norm(k)
    logits = (q.float() @ k.float().transpose(2, 3)) * q.shape[-1] ** -0.5
    weights: Tensor = logits.softmax(-1).mean(1).squeeze(1)
    return weights


def _cls_query_and_keys(
    x: Tensor, width: int, heads: int, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return q of the CLS token (B, heads, 1, c) and k of all (B, heads, T, c).

    The first two thirds of the stacked projection: q, then k.
    """
    q = nn.functional.linear(x[:, :1], weight[:width], None if bias is None else bias[:width])
    k = nn.functional.linear(
        x, weight[width : 2 * width], None if bias is None else bias[width : 2 * width]
    )
    return _split_heads(q, heads), _split_heads(k, heads)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads x c) -> (B, heads, T, c)."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)
