"""Grad-ECLIP made linear: map(t) = relu(R t) with R = diag(lambda) V J^T.

X enters the last block, row 0 CLS; q, k, v its projections; o = softmax(q_0 K^T) V; with the tail
f = normalise(P LN(y + MLP(LN y))), y = x_0 + W_o o, the score of a text t is f . t, and
ds/do = J^T t with J = df/do, which does not depend on t. lambda is cos(W_o q_0, W_o k_i), stretched
to [0, 1] over the patches (Zhao et al., ICML 2024, github.com/Cyang-Zhao/Grad-Eclip).

Instead of J (c, b) the r products J^T B are taken, and of k, v over all patches only what lambda
and V J^T B need. `published`: the code computes o anew with one head over the full width, and its
lambda includes the output projection's bias; `model`: the model's own heads, and no bias.

B images, T tokens (CLS first), M patches, b teacher width, c text width, r rank.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared.vocabulary import QueryHeads
from teacher_cache.query.blocks import Block, Tail


def grad_eclip(
    x: Float[Tensor, "B T b"],
    block: Block,
    tail: Tail,
    basis: Float[Tensor, "c r"],
    heads: QueryHeads,
    patches: int,
) -> Float[Tensor, "B M r"]:
    """Return R B for a batch.

    Parameters
    ----------
    x
        What enters the last block.
    patches
        M: the last tokens; what stands between CLS and them is no patch.
    """
    normed = block.norm(x)
    w_q, w_k, w_v = block.weight.chunk(3)
    b_q, b_k, b_v = block.bias.chunk(3)
    q = nn.functional.linear(normed[:, 0], w_q, b_q)  # (B, b)
    o = _attended(normed, q, block, heads)
    gradient = _gradient(x[:, 0], o, block, tail, basis)  # (B, r, b)
    shown = normed[:, -patches:]
    # V J^T B without V: (x W_v^T + b_v) G^T = x (G W_v)^T + b_v G^T
    values = shown @ (gradient @ w_v).transpose(1, 2) + (gradient @ b_v)[:, None]
    bias = block.out.bias if heads == "published" else None
    keys = nn.functional.linear(nn.functional.linear(shown, w_k, b_k), block.out.weight, bias)
    query = nn.functional.linear(q, block.out.weight, bias)
    cosine = nn.functional.cosine_similarity(query[:, None], keys, dim=-1, eps=1e-12)
    low, high = cosine.amin(1, keepdim=True), cosine.amax(1, keepdim=True)
    stretched = (cosine - low) / (high - low).clamp_min(torch.finfo(cosine.dtype).tiny)
    found: Tensor = stretched[..., None] * values
    return found


def _attended(
    normed: Float[Tensor, "B T b"], q: Float[Tensor, "B b"], block: Block, heads: QueryHeads
) -> Float[Tensor, "B b"]:
    """Return o of the CLS token.

    q_0 . k_i = x_i . (W_k^T q_0) plus what is the same for all i, which softmax does not see; and
    sum_i a_i v_i = W_v (sum_i a_i x_i) + b_v.
    """
    number = 1 if heads == "published" else block.heads
    _, w_k, w_v = (one.reshape(number, -1, block.width) for one in block.weight.chunk(3))
    b_v = block.bias[2 * block.width :]
    asked = torch.einsum("nhd,hdb->nhb", q.reshape(len(q), number, -1), w_k)
    weights = (asked @ normed.transpose(1, 2) * w_k.shape[1] ** -0.5).softmax(-1)  # (B, H, T)
    mixed = weights @ normed
    return torch.einsum("nhb,hdb->nhd", mixed, w_v).flatten(1) + b_v


def _gradient(
    cls: Float[Tensor, "B b"],
    o: Float[Tensor, "B b"],
    block: Block,
    tail: Tail,
    basis: Float[Tensor, "c r"],
) -> Float[Tensor, "B r b"]:
    """Return (J^T B)^T: r vector-Jacobian products of the tail."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        # Outside of inference mode, in which no gradient can be taken.
        leaf = o.clone().requires_grad_()
        y = cls.clone() + block.scale * block.out(leaf)
        f = nn.functional.normalize(tail.project(block.after(y[:, None]))[:, 0], dim=-1)
        wanted = basis.T.to(f)[:, None].expand(-1, len(f), -1)
        (found,) = torch.autograd.grad(f, leaf, wanted, is_grads_batched=True)
    return found.transpose(0, 1)
