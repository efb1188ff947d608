"""Private names of other libraries: here and nowhere else.

Each is used because the library offers no public one for it. `tests/student_train/test_upstream.py`
fails with "upstream moved" where one is gone; this file is then the only one to mend.
"""

import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

Kernel = Callable[..., tuple[Tensor, Tensor | None]]


@runtime_checkable
class AttentionConfig(Protocol):
    """A transformers configuration, as attention modules read it to find their kernel."""

    _attn_implementation: str


Config = TypeVar("Config", bound=AttentionConfig)


def name_source(model: object, source: str) -> None:
    """Write into a model and its configuration where it comes from."""
    setattr(model, "name_or_path", source)  # noqa: B010 - a public field, but of an untyped class
    setattr(getattr(model, "config"), "_name_or_path", source)  # noqa: B009, B010


def has_master(parameter: nn.Parameter) -> bool:
    """Whether DeepSpeed keeps a float32 master of a parameter."""
    return hasattr(parameter, "_hp_mapping") or hasattr(parameter, "_z3_optimizer")


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 has cut a parameter over the ranks."""
    return hasattr(parameter, "ds_id")


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


Positions = Callable[[Tensor, Mapping[str, object]], Tensor]  # (inputs, model_kwargs) -> positions


def text_positions(model: object, inputs: Tensor, given: Mapping[str, object]) -> Tensor:
    """Return each token's place in the text (B, T), as `generate` counts it."""
    from transformers import GenerationMixin

    found: Tensor = GenerationMixin._prepare_position_ids_for_generation(model, inputs, given)
    return found


def prepare_positions(model: object, prepare: Positions) -> None:
    """Let a model's `generate` ask `prepare` for the positions of a prompt."""
    setattr(model, "_prepare_position_ids_for_generation", prepare)  # noqa: B010 - no public hook


# --- DeepSpeed and accelerate


def skip_shared_memory_reduction() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce.

    It would take 100 s and a C++ compiler, for little on a CPU.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@contextmanager
def fresh_accelerate() -> Iterator[None]:
    """Forget the state that accelerate keeps between runs in one process.

    The next run may want another backend.
    """
    from accelerate.state import AcceleratorState, GradientState

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    try:
        yield
    finally:
        reset()


# --- the Trainer


@runtime_checkable
class _Devices(Protocol):
    n_gpu: int


def use_one_gpu(arguments: _Devices) -> None:
    """Use one of several GPUs where there is no launcher.

    torch's DataParallel would copy the model and leave the hooks behind.
    """
    setattr(arguments, "_n_gpu", min(arguments.n_gpu, 1))  # noqa: B010 - no public field


Moved = TypeVar("Moved")
Item = TypeVar("Item")  # what a loader yields


class TrainerSeams(ABC, Generic[Item]):
    """The Trainer's private methods under names of their own.

    Goes before `Trainer` among the bases of a class.
    """

    @abstractmethod
    def count_step(self, batches: Sequence[Item], device: torch.device) -> Tensor | None:
        """Look at the micro-batches of a step before it; return what its loss is a mean over."""

    @abstractmethod
    def sampler(self) -> "torch.utils.data.Sampler[int] | None":
        """Return the order of the training set."""

    @abstractmethod
    def check_norm(self, norm: Tensor | float | None) -> None:
        """Look at the gradient's norm before the optimiser's step."""

    @abstractmethod
    def write_model(self, folder: Path, in_checkpoint: bool) -> None:
        """Write what was trained; all ranks call it together."""

    @abstractmethod
    def read_model(self, folder: Path) -> None:
        """Take what was trained from a checkpoint."""

    def to_device(self, batch: Moved) -> Moved:
        """Return a batch with its tensors on the device of this rank."""
        moved: Moved = self._prepare_inputs(batch)  # type: ignore[attr-defined]
        return moved

    def _get_num_items_in_batch(
        self, batch_samples: list[Item], device: torch.device
    ) -> Tensor | None:
        return self.count_step(batch_samples, device)

    def _get_train_sampler(
        self, train_dataset: object = None
    ) -> "torch.utils.data.Sampler[int] | None":
        return self.sampler()

    def _get_grad_norm(
        self, model: nn.Module, grad_norm: Tensor | float | None = None
    ) -> Tensor | float | None:
        norm: Tensor | float | None = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        self.check_norm(norm)
        return norm

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        self.read_model(Path(resume_from_checkpoint))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model; the Trainer marks its own call for a checkpoint."""
        folder = Path(output_dir or self.args.output_dir)  # type: ignore[attr-defined]
        self.write_model(folder, in_checkpoint=_internal_call)
