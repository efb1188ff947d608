"""TextSpan: what each patch adds to the image's embedding through the last layers' attention.

The image embedding is a sum over layers, heads and patches of a_0i v_i W_o (Gandelsman et al.,
ICLR 2024, github.com/yossigandelsman/clip_prs), behind the final norm taken as linear at the CLS
token: less its share of the mean, over the deviation, plus its share of the norm's bias. The
published map sums over all layers; here over the last `LAYERS`, which the paper finds to matter.

B images, T tokens (CLS first), M patches, b teacher width, c text width, r rank, L layers.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from teacher_cache.query.blocks import Block, Tail

LAYERS = 4


def textspan(
    entering: Sequence[Float[Tensor, "B T b"]],
    leaving: Float[Tensor, "B T b"],
    blocks: Sequence[Block],
    tail: Tail,
    basis: Float[Tensor, "c r"],
    depth: int,
    patches: int,
) -> Float[Tensor, "B M r"]:
    """Return R B for a batch.

    Parameters
    ----------
    entering, leaving
        What enters each of the blocks given, and what leaves the last one.
    depth
        Layers of the whole model: 2 depth + 1 parts share the norm's mean and bias.
    """
    cls, tokens = leaving[:, 0], leaving.shape[1]
    mean = cls.mean(-1, keepdim=True)
    deviation = (cls.var(-1, unbiased=False, keepdim=True) + tail.norm.eps).sqrt()
    share = 1 / ((2 * depth + 1) * tokens)
    total = torch.zeros_like(leaving[:, -patches:])
    for x, block in zip(entering, blocks, strict=True):
        q, k, v = (block.split(one) for one in block.projected(x))
        weights = (q[:, :, :1] @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
        mixed = (weights.transpose(2, 3) * v).transpose(1, 2).flatten(2)[:, -patches:]
        added = mixed @ block.out.weight.T + block.out.bias / tokens
        added = block.scale * added - mean[:, None] * share
        total += tail.norm.weight * added / deviation[:, None] + tail.norm.bias * share
    length = tail.project(leaving[:, :1])[:, 0].norm(dim=-1)[:, None, None]
    found: Tensor = total @ (tail.matrix @ basis.to(tail.matrix)) / length
    return found
