"""The digest of a model's weights, against sums in arbitrary precision."""

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.evaluation.loading import weights_digest

pytestmark = pytest.mark.unit


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """Of several sizes in bits, over and under the lengths at which sums are cut."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "wide": torch.randn(700, 611, generator=generator),  # 427,700 numbers
        "half": torch.randn(262_145, generator=generator).to(torch.bfloat16),
        "long": torch.randint(-(2**62), 2**62, (70_001,), generator=generator),
        "bytes": torch.randint(0, 255, (65_522,), generator=generator).to(torch.uint8),
        "turned": torch.randn(5, 7, generator=generator).T,
        "one": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
    }


def digest_of(named: dict[str, torch.Tensor]) -> str:
    """The same digest with Python's integers, cut to 64 bits at the end."""
    whole = hashlib.sha256()
    for name, tensor in sorted(named.items()):
        kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        flat = tensor.contiguous().view(-1).view(kind[tensor.element_size()]).numpy()
        values = flat.astype(object)
        places = (np.arange(len(values)) % 65521 + 1).astype(object)
        sums = [int(values.sum()), int((values * places).sum())] if len(values) else [0, 0]
        plain, weighted = ((one + 2**63) % 2**64 - 2**63 for one in sums)
        whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {plain} {weighted}\n".encode())
    return whole.hexdigest()


def test_the_digest_is_that_of_two_sums_of_each_tensors_bits() -> None:
    named = tensors(0)
    before = {name: tensor.clone() for name, tensor in named.items()}
    model: Any = SimpleNamespace(state_dict=lambda: named)
    assert weights_digest(model) == digest_of(named)
    assert all(torch.equal(before[name], tensor) for name, tensor in named.items())


def test_two_numbers_that_change_places_change_the_digest() -> None:
    named = tensors(1)
    model: Any = SimpleNamespace(state_dict=lambda: named)
    first = weights_digest(model)
    named["wide"] = named["wide"].clone()
    named["wide"][0, [3, 4]] = named["wide"][0, [4, 3]]
    assert weights_digest(model) != first
