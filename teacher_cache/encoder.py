"""One pass of the teacher for both targets: E_v and E_a of its last block.

Every block runs on fused attention, which never forms the weights. Of the last block only the CLS
row is wanted: softmax(q_cls K^T / sqrt(c)) is one 1 x (M+1) product a head, computed from that
block's own normalised input.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from teacher_cache.teachers.base import Teacher


class Encoded(NamedTuple):
    """E_v (B, M, b), the last block's patch tokens before the final norm.

    E_a (B, M), its CLS attention, head mean.
    """

    tokens: Tensor
    attention: Tensor


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
    block, attention = _last_block(teacher.model)
    caught: dict[str, Tensor] = {}

    def catch_input(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught["input"] = args[0] if args else kwargs["query"]

    def catch_output(module: torch.nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        caught["output"] = output

    hooks = [
        attention.register_forward_pre_hook(catch_input, with_kwargs=True),
        block.register_forward_hook(catch_output),
    ]
    try:
        teacher.model(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    if not getattr(
        attention, "batch_first", True
    ):  # open_clip's tower as it is loaded: (T, B, d) inside
        caught = {name: tensor.transpose(0, 1).contiguous() for name, tensor in caught.items()}
    weights = _cls_attention(attention, caught["input"])
    tokens = caught["output"][:, -teacher.grid.size :]
    if features == "projected":
        if teacher.project is None:
            raise ValueError(f"teacher {teacher.name} has no projection")
        tokens = teacher.project(tokens)
    return Encoded(tokens, weights[:, -teacher.grid.size :])


def _last_block(model: Any) -> tuple[Any, Any]:
    """Return last block and its attention, of timm's ViT or open_clip's."""
    block = model.blocks[-1] if hasattr(model, "blocks") else model.transformer.resblocks[-1]
    return block, block.attn


def _cls_attention(attention: Any, x: Tensor) -> Tensor:
    """Softmax of the CLS row over all tokens, mean over heads, (B, T) float32, from the module's input x (B, T, d)."""
    if isinstance(attention, torch.nn.MultiheadAttention):  # open_clip: one stacked in-projection
        d, heads = attention.embed_dim, attention.num_heads
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        q = torch.nn.functional.linear(x[:, :1], weight[:d], bias[:d])
        k = torch.nn.functional.linear(x, weight[d : 2 * d], bias[d : 2 * d])
        q, k = _split_heads(q, heads), _split_heads(k, heads)
    else:  # timm: qkv, perhaps with norms on q and k
        width, heads = attention.attn_dim, attention.num_heads
        bias = attention.qkv.bias
        weight = attention.qkv.weight
        q = torch.nn.functional.linear(
            x[:, :1], weight[:width], None if bias is None else bias[:width]
        )
        k = torch.nn.functional.linear(
            x, weight[width : 2 * width], None if bias is None else bias[width : 2 * width]
        )
        q, k = _split_heads(q, heads), _split_heads(k, heads)
        q, k = attention.q_norm(q), attention.k_norm(k)
    logits = (q.float() @ k.float().transpose(2, 3)) * q.shape[-1] ** -0.5
    weights: Tensor = logits.softmax(-1).mean(1).squeeze(1)
    return weights


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads x c) -> (B, heads, T, c)."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)
