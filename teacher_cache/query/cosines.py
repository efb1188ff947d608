"""Read-outs whose map is the cosine of a patch and a text: MaskCLIP, ClearCLIP, SCLIP.

| method | a patch becomes P LN(z), z = | source |
|---|---|---|
| `maskclip` | u + MLP(LN u), u = x_i + W_o v_i | github.com/chongzhou96/MaskCLIP (ECCV 2022) |
| `clearclip` | W_o sum_j softmax(q_i q_j) v_j | github.com/mc-lan/ClearCLIP (ECCV 2024) |
| `sclip` | u + MLP(LN u), u = x_i + W_o sum_j [softmax(q_i q_j) + softmax(k_i k_j)] v_j | \
github.com/wangf3014/SCLIP (ECCV 2024) |

W_o is with its bias, and j runs over all tokens. Each is normalised, so that it is linear in t.

B images, T tokens (CLS first), M patches, b teacher width, c text width, r rank.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared.vocabulary import QueryMethod
from teacher_cache.query.blocks import Block, Tail


def cosines(
    x: Float[Tensor, "B T b"],
    block: Block,
    tail: Tail,
    basis: Float[Tensor, "c r"],
    method: QueryMethod,
    patches: int,
) -> Float[Tensor, "B M r"]:
    """Return R B for a batch; `x` enters the last block."""
    q, k, v = block.projected(x)
    if method == "maskclip":
        z = block.after(x + block.scale * block.out(v))
    elif method == "clearclip":
        z = block.out(_mixed(block, v, q))
    else:
        z = block.after(x + block.scale * block.out(_mixed(block, v, q, k)))
    embedded = nn.functional.normalize(tail.project(z[:, -patches:]), dim=-1)
    return embedded @ basis.to(embedded)


def _mixed(block: Block, v: Tensor, *sides: Tensor) -> Float[Tensor, "B T b"]:
    """Return the values mixed by each side's attention to itself, summed over the sides."""
    values = block.split(v)
    total = torch.zeros_like(values)
    for side in map(block.split, sides):
        total = total + (side @ side.transpose(2, 3) * side.shape[-1] ** -0.5).softmax(-1) @ values
    laid: Tensor = total.transpose(1, 2).flatten(2)
    return laid
