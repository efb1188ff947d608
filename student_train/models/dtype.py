"""The type of a student's base weights: the checkpoint's own, or the one asked for."""

from collections import Counter
from pathlib import Path

import torch

from shared.vocabulary import WeightsDtype
from student_train.models.folder import open_weights, weight_files

_NAMED: dict[WeightsDtype, torch.dtype | None] = {
    "auto": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def dtype_named(name: WeightsDtype) -> torch.dtype | None:
    """Return the torch dtype of a command's `--dtype`; None for `auto`."""
    return _NAMED[name]


def own_dtype(folder: Path) -> torch.dtype:
    """Return the type that most of a checkpoint's weights are stored in.

    The files say it, not `config.json`, which may name the type of a training. float32 where most
    are stored in a type that nothing here computes in.

    Raises
    ------
    UserError
        What `weight_files` and `open_weights` refuse.
    """
    sizes: Counter[torch.dtype] = Counter()
    with open_weights(weight_files(folder)) as readers:
        for read in readers.values():
            tensor = read()
            if tensor.is_floating_point():
                sizes[tensor.dtype] += tensor.numel()
    most = max(sizes, key=sizes.__getitem__, default=torch.float32)
    return most if most in _NAMED.values() else torch.float32
