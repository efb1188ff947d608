"""`patches` and `query` made where the teacher ran: int8 leaves the device, not float32.

`patches` are what `quantise_patches` makes, operation for operation.

Additions, divisions and roundings of float32 are IEEE's on a processor and on a GPU, so that both
give the same bytes. Divisors are tensors: a GPU multiplies by the reciprocal of a plain number.

B images of a batch, M teacher patches, b teacher width, r rank of a query.
"""

import torch
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from shared.targets.numbers.rotation import signs


def quantise_on_device(
    tokens: Float[Tensor, "*B M b"],
) -> tuple[Int8[Tensor, "*B M b"], Float32[Tensor, "*B M"]]:
    """Return values and scales of `quantise_patches`, on the device of `tokens`."""
    return _quantised(_rotate(tokens.float()))


def quantise_query(
    values: Float[Tensor, "*B M r"],
) -> tuple[Int8[Tensor, "*B M r"], Float32[Tensor, "*B M"]]:
    """Return the values and the scale of each patch: values x scale is R B."""
    return _quantised(values.float())


def _quantised(given: Float32[Tensor, "*B M b"]) -> tuple[Tensor, Tensor]:
    largest = given.abs().amax(-1)
    safe = largest.clamp(min=torch.finfo(torch.float32).tiny)
    steps = torch.full((1,), 127.0, device=given.device)
    values = (given / safe.unsqueeze(-1) * steps).round().to(torch.int8)
    return values, largest / steps


def _rotate(values: Float32[Tensor, "*B M b"]) -> Float32[Tensor, "*B M b"]:
    """Do what `rotation.rotate` does."""
    width = values.shape[-1]
    block = width & -width
    folded = (values * torch.from_numpy(signs(width)).to(values.device)).reshape(-1, block)
    half = 1
    while half < block:
        pairs = folded.reshape(-1, block // (2 * half), 2, half)
        one, other = pairs[:, :, 0], pairs[:, :, 1]
        folded = torch.stack([one + other, one - other], 2)
        half *= 2
    root = torch.full((1,), float(block), device=values.device).sqrt()
    turned: Tensor = folded.reshape(values.shape) / root
    return turned
