"""A student ready to decode, and the digests that name it in the journal."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shared.vocabulary import WeightsDtype

if TYPE_CHECKING:
    from pipelines.decoding.prompts import Model
    from shared.recipe import Recipe
    from student_train.models.processor import Processor


# Of a digest: the period of its weights, a prime; the numbers that share a pair of sums; and those
# that are summed at once, as many as a processor's cache holds.
_PERIOD, _BLOCK, _PART = 65521, 1 << 24, 1 << 18


class Loaded(NamedTuple):
    """A student ready to decode.

    The image-text model with adapter layers and hooks inside, and its processor.
    """

    model: "Model"
    processor: "Processor"
    weights: str  # digest of every parameter; empty where it was not asked for
    adapter: str  # digest of the adapter folder's weights


def load_student(
    folder: Path,
    device: str | None = None,
    base: str | None = None,
    dtype: WeightsDtype = "auto",
    *,
    named: bool = True,
) -> Loaded:
    """Load an adapter folder (or a plain model folder) for decoding.

    `device` is the best one that this process has, where none is given. `base`: where the adapter's
    base model is now, if not where its recipe says. `dtype` is that of the base weights. `named`:
    the digest of the weights is taken, which a journal of answers needs and which reads them all.
    """
    import torch

    import student_train
    from pipelines.decoding.prompts import plain_model
    from shared.processes import choose_device
    from student_train.models.dtype import dtype_named

    if not torch.cuda.is_available():
        # else DeepSpeed, which `generate` looks for, warns on stdout
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    device = device or choose_device()
    adapted, processor = student_train.load(folder, base=base, dtype=dtype_named(dtype))
    model = plain_model(adapted)
    model.to(device)
    model.eval()
    weights = weights_digest(model) if named else ""
    exact = model.dtype == torch.float32
    if device.startswith("cpu") and exact and hasattr(adapted, "merge_adapter"):
        # Two small products a layer cost time there; in float32 adding them to the weights loses
        # nothing that counts. In bfloat16 it would round them away.
        adapted.merge_adapter()
    return Loaded(model, processor, weights, adapter_digest(folder))


def load_base_student(
    folder: Path, recipe: "Recipe", device: str | None = None, base: str | None = None
) -> Loaded:
    """Load the model that the adapter in `folder` began with, without adapter, W and digests.

    `base`: where it is now, if not where the recipe says.
    """
    from pipelines.decoding.prompts import plain_model
    from shared.processes import choose_device
    from student_train.adapter.loading import base_section
    from student_train.models import load_base

    device = device or choose_device()
    began = load_base(base_section(folder, recipe, base))
    model = plain_model(began.model)
    model.to(device)
    model.eval()
    processor = began.processor(recipe.data.geometry, recipe.data.padding)
    return Loaded(model, processor, "", "")


def pad_id(processor: "Processor") -> int:
    """Token that fills short prompts: the tokenizer's own, else its end token."""
    tokenizer = processor.tokenizer
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(found)


def end_ids(processor: "Processor") -> tuple[int, ...]:
    """Tokens that end an answer: the template's and the tokenizer's."""
    tokenizer = processor.tokenizer
    ids = [tokenizer.convert_tokens_to_ids(processor.template.end_token), tokenizer.eos_token_id]
    return tuple(dict.fromkeys(int(one) for one in ids if one is not None))


def weights_digest(model: "Model") -> str:
    """Hex digest of every parameter and buffer, the same on every device.

    Names, shapes, types and sums of the bits.

    Two sums a tensor, plain and weighted by position, of 64-bit integers that wrap.
    """
    import torch

    digest = hashlib.sha256()
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    weights = torch.arange(_PERIOD + _PART) % _PERIOD + 1  # they repeat, so one row serves all
    for name, tensor in sorted(model.state_dict().items()):
        bits = tensor.detach().contiguous().view(-1).view(kinds[tensor.element_size()])
        weights = weights.to(bits.device)
        plain = weighted = 0
        for begin in range(0, bits.numel(), _BLOCK):
            end = min(begin + _BLOCK, bits.numel())
            sums = torch.zeros(2, dtype=torch.int64, device=bits.device)
            for place in range(begin, end, _PART):
                wide = bits[place : min(place + _PART, end)].to(torch.int64)
                first = place % _PERIOD
                sums[0] += wide.sum()
                sums[1] += (wide * weights[first : first + len(wide)]).sum()
            plain, weighted = plain + int(sums[0]), weighted + int(sums[1])
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {plain} {weighted}\n".encode())
    return digest.hexdigest()


def adapter_digest(folder: Path) -> str:
    """Hex sha256 over the adapter folder's safetensors and its PEFT configuration.

    Empty for a plain model folder.
    """
    if not (folder / "adapter_config.json").is_file():
        return ""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "adapter_config.json"]):
        digest.update(path.name.encode() + b"\x00" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
