"""Private names of other libraries: here and nowhere else.

Each is used because the library offers no public one for it. `tests/student_train/test_upstream.py`
fails with "upstream moved" where one is gone; this file is then the only one to mend.
"""

import copy
import sys
from collections.abc import Callable
from typing import Protocol, TypeVar

from torch import Tensor, nn

Kernel = Callable[..., tuple[Tensor, Tensor | None]]


class AttentionConfig(Protocol):
    """A transformers configuration, as attention modules read it to find their kernel."""

    _attn_implementation: str


Config = TypeVar("Config", bound=AttentionConfig)


def kernel_name(config: AttentionConfig) -> str:
    """Return the attention kernel that `config` chooses: `sdpa`, `eager`, `flash_attention_2`."""
    return config._attn_implementation


def with_kernel(config: Config, name: str) -> Config:
    """Return a copy of `config` that chooses kernel `name`, without transformers' checks of it."""
    changed = copy.copy(config)
    setattr(changed, "_attn_implementation_internal", name)  # noqa: B010 - no public field
    return changed


def register_kernel(name: str, kernel: Kernel) -> None:
    """Let configurations choose `kernel` by `name`."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, kernel)


def kernel_of(module: nn.Module, config: AttentionConfig) -> Kernel:
    """Return the attention kernel that `module` runs under `config`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = kernel_name(config)
    found: Kernel
    if name == "eager":  # each model file has its own
        found = sys.modules[type(module).__module__].eager_attention_forward
    else:
        found = ALL_ATTENTION_FUNCTIONS[name]
    return found
