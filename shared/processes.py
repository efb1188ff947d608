"""Which process of a run this is, and its device.

As launchers (`torchrun`, `deepspeed`) say in the environment.
"""

import os
from typing import NamedTuple

from shared.errors import UserError


class Process(NamedTuple):
    """One of the processes of a run: RANK, WORLD_SIZE and LOCAL_RANK; alone it is rank 0 of 1."""

    rank: int
    world: int
    local: int


def this_process() -> Process:
    """Read the place of this process from its environment."""
    names = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    return Process(*(int(os.environ.get(name, alone)) for name, alone in names))


def is_main_process() -> bool:
    """Whether this process speaks and writes for all."""
    return this_process().rank == 0


def no_gpu_for_deepspeed() -> None:
    """Where torch sees no GPU, tell DeepSpeed to look for none.

    Else it asks for one wherever it is imported, and warns on standard output.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def choose_device(wanted: str = "auto", option: str = "--device cuda") -> str:
    """Return the torch device of this process.

    `cpu`, or `cuda:N`, for each rank of a machine its own.

    Parameters
    ----------
    wanted
        `auto` (a GPU where there is one), `cpu` or `cuda`.
    option
        How the user asks for a GPU, for the error.

    Raises
    ------
    UserError
        `cuda` is asked for and there is none, or fewer GPUs than ranks on this machine.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not count):
        return "cpu"
    if not count:
        raise UserError(
            f"{option}: no GPU is visible to torch; use {option.replace('cuda', 'cpu')}"
        )
    local = this_process().local
    if local >= count:
        raise UserError(
            f"rank {local} of this machine has no GPU, there are {count}: start one rank a GPU"
        )
    return f"cuda:{local}"
