"""A block of a ViT as the read-outs see it: its projections, and what follows its attention.

Of open_clip's and timm's plain ViTs.

B images, T tokens, H heads, b teacher width, c text width, d width of a head.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared.errors import UserError
from teacher_cache.teachers.base import Teacher

Tokens = Float[Tensor, "B T b"]


class Block(NamedTuple):
    """One block.

    Attributes
    ----------
    norm
        Before the attention.
    weight, bias
        Of the stacked projection to q, k, v: (3b, b), (3b,).
    heads
        Their number.
    out
        W_o and its bias, the output projection.
    scale
        Of the attention's branch, 1 where the block has none.
    after
        y -> y + MLP(norm(y)).
    """

    norm: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor
    heads: int
    out: nn.Linear
    scale: Tensor | float
    after: Callable[[Tensor], Tensor]

    @property
    def width(self) -> int:
        """Width b of the tokens."""
        return int(self.weight.shape[1])

    def projected(self, x: Tokens) -> tuple[Tokens, Tokens, Tokens]:
        """Return q, k and v of the tokens that enter the block, heads side by side."""
        q, k, v = nn.functional.linear(self.norm(x), self.weight, self.bias).chunk(3, dim=-1)
        return q, k, v

    def split(self, x: Tokens) -> Float[Tensor, "B H T d"]:
        """Lay the heads of q, k or v apart."""
        laid: Tensor = x.reshape(*x.shape[:-1], self.heads, -1).transpose(1, 2)
        return laid


class Tail(NamedTuple):
    """What follows the blocks: the final norm, and the projection of normed tokens to the text."""

    norm: nn.LayerNorm
    project: Callable[[Tensor], Tensor]  # both: (..., b) -> (..., c)
    matrix: Tensor  # (b, c), the projection alone


class _OpenClipBlock(Protocol):
    ln_1: nn.Module
    ln_2: nn.Module
    attn: nn.MultiheadAttention
    mlp: nn.Module


class _TimmAttention(Protocol):
    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int
    q_norm: nn.Module
    k_norm: nn.Module


class _TimmBlock(Protocol):
    norm1: nn.Module
    norm2: nn.Module
    attn: _TimmAttention
    mlp: nn.Module
    ls1: nn.Module
    ls2: nn.Module


def modules_of(teacher: Teacher) -> Sequence[nn.Module]:
    """Return the blocks of a teacher as modules, to hook.

    Raises
    ------
    UserError
        It is of another kind, or has no projection to a text space.
    """
    model = teacher.model
    blocks = getattr(model, "blocks", None)
    if blocks is None:
        blocks = getattr(getattr(model, "transformer", None), "resblocks", None)
    if teacher.project is None or blocks is None:
        raise UserError(
            f"--query needs a teacher with a text space: unimed-l, unimed-b, biomedclip, bmc-clip "
            f"and open_clip's ViTs have one, {teacher.name} has not; --encoding patches and `cache "
            "query fit` ask it"
        )
    return list(blocks)


def block_of(module: nn.Module) -> Block:
    """Read a block of open_clip or timm."""
    if isinstance(getattr(module, "attn", None), nn.MultiheadAttention):
        clip = cast("_OpenClipBlock", module)
        weight, bias = clip.attn.in_proj_weight, clip.attn.in_proj_bias
        bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
        return Block(
            clip.ln_1, cast("Tensor", weight), bias, clip.attn.num_heads, clip.attn.out_proj, 1.0,
            lambda y: y + clip.mlp(clip.ln_2(y)),
        )  # fmt: skip
    timm = cast("_TimmBlock", module)
    qkv, scale = timm.attn.qkv, getattr(timm.ls1, "gamma", None)
    if not all(isinstance(one, nn.Identity) for one in (timm.attn.q_norm, timm.attn.k_norm)):
        raise UserError("--query reads no blocks that norm their q and k")
    bias = torch.zeros_like(qkv.weight[:, 0]) if qkv.bias is None else qkv.bias
    return Block(
        timm.norm1, qkv.weight, bias, timm.attn.num_heads, timm.attn.proj,
        1.0 if scale is None else scale, lambda y: y + timm.ls2(timm.mlp(timm.norm2(y))),
    )  # fmt: skip


def tail_of(teacher: Teacher) -> Tail:
    """Read the final norm and the projection of a teacher with a text space."""
    if teacher.project is None or teacher.projection is None:
        raise ValueError(f"{teacher.name} has no projection")
    model = teacher.model
    norm = cast("nn.LayerNorm", getattr(model, "ln_post" if hasattr(model, "ln_post") else "norm"))
    return Tail(norm, teacher.project, teacher.projection.to(norm.weight))
