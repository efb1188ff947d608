"""Before torch and DeepSpeed decide anything: device, process group, trackers and hub."""

import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from shared.console import warn
from shared.errors import UserError
from shared.processes import choose_device, is_main_process, no_gpu_for_deepspeed, this_process
from shared.recipe import Recipe
from student_train.upstream import skip_shared_memory_reduction


def use_cpu(recipe: Recipe) -> bool:
    """Whether this run trains on the CPU; errors as in `choose_device`."""
    return choose_device(recipe.train.device, "train.device=cuda") == "cpu"


def check_trackers(recipe: Recipe) -> None:
    """Raise a `UserError` for a tracker that cannot be used; warn where data leaves the machine."""
    from importlib import import_module

    for tracker in recipe.train.report_to:
        try:
            import_module(tracker)
        except ImportError as error:
            raise UserError(
                f"train.report_to names {tracker}, which cannot be imported ({error}): pip install "
                f"{tracker}"
            ) from None
    # W&B would copy the terminal, and with it the sample answers, to its server.
    os.environ.setdefault("WANDB_CONSOLE", "off")
    sent = [tracker for tracker in recipe.train.report_to if tracker != "tensorboard"]
    if sent and is_main_process():
        warn(
            f"losses, settings and paths of this run go to {', '.join(sent)}; sample answers stay "
            "in the output folder"
        )


def check_hub(recipe: Recipe) -> None:
    """Raise a `UserError` where `train.push_to_hub` could not end well.

    Better before the training than after it.
    """
    repository = recipe.train.push_to_hub
    if repository is None:
        return
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # public, but not in __all__

    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise UserError(
            f"train.push_to_hub={repository} is no hub id; it is written owner/name"
        ) from None
    if get_token() is None:
        raise UserError(
            "train.push_to_hub needs a token of the hub: `hf auth login`, or set HF_TOKEN"
        )


@contextmanager
def process_group(cpu: bool, deepspeed: bool) -> Iterator[None]:
    """Have a process group where one is needed, alone or under a launcher; on a CPU it is gloo.

    DeepSpeed wants a process group even in a single process. Without a launcher it gets one of its
    own on this machine; the variables that say so are taken back at the end, lest a process started
    later believes in them.
    """
    before, alone = dict(os.environ), False
    try:
        if cpu:
            import torch

            no_gpu_for_deepspeed()

            # accelerate would choose a number itself, and warn of it.
            os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
        launched = this_process().world > 1
        alone = deepspeed and not launched and "RANK" not in os.environ
        if alone:
            os.environ |= _alone()
        if deepspeed:
            # Before the model is built: ZeRO-3 partitions weights over this group.
            import deepspeed as library

            if cpu:
                skip_shared_memory_reduction()
            library.init_distributed(dist_backend="gloo" if cpu else "nccl", verbose=False)
        with warnings.catch_warnings(), _without_accumulation_notes():
            # DeepSpeed 0.19 calls these two by names that torch 2.14 has replaced.
            names = "(all_gather_into|reduce_scatter)_tensor"
            warnings.filterwarnings(
                "ignore", rf"`torch.distributed.{names}` is deprecated", FutureWarning
            )
            yield
    finally:
        if alone:  # a group of one, which a later run or build of this process is not of
            _leave_group()
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


def _leave_group() -> None:
    """End DeepSpeed's process group, where there is one."""
    from torch import distributed

    if distributed.is_initialized():
        import deepspeed

        deepspeed.comm.destroy_process_group()


@contextmanager
def _without_accumulation_notes() -> Iterator[None]:
    """Hold back accelerate's note on a number in which its plugin and DeepSpeed differ.

    The Trainer leaves the plugin's at 1.
    """
    logger = logging.getLogger("accelerate.accelerator")

    def other(record: logging.LogRecord) -> bool:
        return "Gradient accumulation steps mismatch" not in record.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _alone() -> dict[str, str]:
    """Return what a launcher would set for one process, with a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
