"""The trainable rotation (Eq. 1): x' = x + W x on the image tokens that enter decoder layer l.

W is zero at the start.

For token rows that is `x' = x + x @ W.T`, W stored (out, in). Three parametrisations of W:

- `full`: the (d, d) matrix itself, as in the paper;
- `low_rank`: W = U V^T with U, V (d, r);
- `orthogonal`: I + W = (I - A)(I + A)^-1, the Cayley transform of the skew-symmetric A = U V^T - V
  U^T. With
  B = [U, -V] and C = [V, U] (d, 2r) one has A = B C^T, and by Woodbury W = -2 B (I + C^T B)^-1 C^T:
  only a (2r, 2r) system is solved.

In the last two U is zero at the start and V is drawn like LoRA's A, so W is zero and its gradient
is not.

Dtype: the parameters are float32 whatever the model's dtype (an optimiser step of 1e-4 vanishes in
bfloat16); the product is taken in the tokens' dtype. Under ZeRO-3, which wants one dtype, DeepSpeed
keeps the float32 master itself.

d student width, r rank; a row is one image token.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal["full", "low_rank", "orthogonal"]


class Rotation(nn.Module):
    """W of one layer.

    Parameters
    ----------
    width
        Hidden size d of the language model.
    kind
        `full`, `low_rank` or `orthogonal`.
    rank
        Columns r of U and V; unused by `full`.
    """

    def __init__(self, width: int, kind: Kind = "full", rank: int = 64) -> None:
        super().__init__()
        self.width, self.kind = width, kind
        if kind == "full":
            self.weight = nn.Parameter(torch.zeros(width, width))
        else:
            self.u = nn.Parameter(torch.zeros(width, rank))
            self.v = nn.Parameter(torch.empty(width, rank))
            nn.init.uniform_(self.v, -1 / math.sqrt(width), 1 / math.sqrt(width))

    def forward(self, tokens: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """Return x + W x for every token row x."""
        if self.kind == "full":
            return tokens + functional.linear(tokens, self.weight.to(tokens.dtype))
        if self.kind == "low_rank":
            return tokens + (tokens @ self.v.to(tokens.dtype)) @ self.u.to(tokens.dtype).T
        left, middle, right = self._cayley()
        inner = tokens @ right.to(tokens.dtype)
        return tokens - 2.0 * (inner @ middle.to(tokens.dtype).T) @ left.to(tokens.dtype).T

    def matrix(self) -> Float[Tensor, "width width"]:
        """Return W (d, d), float32."""
        if self.kind == "full":
            return self.weight.float()
        if self.kind == "low_rank":
            return self.u.float() @ self.v.float().T
        left, middle, right = self._cayley()
        return -2.0 * left @ middle @ right.T

    def _cayley(self) -> tuple[Tensor, Tensor, Tensor]:
        """B (d, 2r), (I + C^T B)^-1 (2r, 2r) and C (d, 2r), in float32."""
        with torch.autocast(self.u.device.type, enabled=False):
            u, v = self.u.float(), self.v.float()
            left, right = torch.cat([u, -v], dim=1), torch.cat([v, u], dim=1)
            identity = torch.eye(left.shape[1], device=left.device)
            return left, torch.linalg.inv(identity + right.T @ left), right
