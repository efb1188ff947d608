"""Resuming on another number of ranks.

DeepSpeed's universal checkpoint, made from the ranks' own shards on the way.
"""

import argparse
import contextlib
import io
from pathlib import Path

from shared.console import note
from shared.errors import UserError
from shared.processes import is_main_process, this_process
from shared.recipe import Recipe, load_recipe
from student_train.adapter.files import RECIPE
from student_train.run.deepspeed_file import DeepSpeedConfig, zero_stage


def check_effective_batch(checkpoint: Path, recipe: Recipe, ranks: int) -> None:
    """Raise a `UserError` where a resumed run would take another number of samples per step."""
    before = load_recipe(checkpoint / RECIPE).train
    old = (ranks_of(checkpoint), before.batch_size, before.accumulation)
    new = (ranks, recipe.train.batch_size, recipe.train.accumulation)
    if old[0] * old[1] * old[2] != new[0] * new[1] * new[2]:
        raise UserError(
            f"{checkpoint} is of {old[0]} ranks x train.batch_size={old[1]} x "
            f"train.accumulation={old[2]}, now it is "
            f"{new[0]} x {new[1]} x {new[2]}; keep the product, so that the order of the samples "
            "is the same"
        )


def ranks_of(checkpoint: Path) -> int:
    """Return how many ranks wrote a checkpoint: each left the state of its random numbers."""
    return max(1, len(list(checkpoint.glob("rng_state_*.pth"))))


def adapt_checkpoint(checkpoint: Path, config: DeepSpeedConfig | None, ranks: int) -> None:
    """Prepare a checkpoint of another number of ranks; DeepSpeed's configuration is told of it.

    ZeRO shards optimiser states over the ranks; the main process merges the shards once, into the
    checkpoint's folder. The checkpoint is trusted: DeepSpeed's files are pickles.
    """
    if config is None or zero_stage(config) == 0 or ranks_of(checkpoint) == ranks:
        return
    config["checkpoint"] = {**config.get("checkpoint", {}), "load_universal": True}
    tag = (checkpoint / "latest").read_text(encoding="utf-8").strip()
    marker = checkpoint / "latest_universal"
    if is_main_process() and not marker.is_file():
        from deepspeed.checkpoint.ds_to_universal import main as convert

        note(f"merging the shards of {ranks_of(checkpoint)} ranks for {ranks}")
        arguments = argparse.Namespace(
            input_folder=str(checkpoint / tag),
            output_folder=str(checkpoint / f"{tag}_universal"),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            convert(arguments)
    if this_process().world > 1:
        import torch

        torch.distributed.barrier()
