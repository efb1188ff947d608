"""`student train --dry-run`: load and check everything, estimate the memory, train nothing."""

import os
from typing import TYPE_CHECKING, Any

from shared.console import warn
from shared.errors import UserError
from shared.recipe import Recipe
from student_train.run.environment import (
    check_hub,
    check_trackers,
    deepspeed_config,
    use_cpu,
    zero_stage,
)

if TYPE_CHECKING:
    from student_train.data.join import ComputeTargets


def dry_run(
    recipe: Recipe, compute_targets: "ComputeTargets | None" = None, resume: bool = False
) -> dict[str, Any]:
    """Check recipe, model, records, images and targets as a run would, and return what the run would be.

    The memory is DeepSpeed's own estimate of the model states for the trainable parameters, plus
    the frozen weights, which its estimators do not know of; activations come on top. More than this
    machine has free is a warning.

    Raises
    ------
    UserError
        Whatever would stop the run before its first step.
    """
    from pathlib import Path

    from student_train.models.base import connector
    from student_train.run.arguments import load_student_base
    from student_train.run.outputs import check_output
    from student_train.run.train import prepare_data
    from student_train.student import make_student

    cpu, config = use_cpu(recipe), deepspeed_config(recipe)
    check_trackers(recipe)
    check_hub(recipe)
    check_output(Path(recipe.output), recipe, resume)
    base = load_student_base(recipe, config)
    data, validation = prepare_data(recipe, base, compute_targets)
    model = base.model
    if recipe.train.tune == "lora":
        model = make_student(base.model, base.image_token_id, recipe).model
    else:
        connector(model).requires_grad_(True)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    batch = recipe.train.batch_size * recipe.train.accumulation * ranks
    steps = (
        recipe.train.max_steps
        if recipe.train.max_steps > 0
        else round(-(-len(data) // batch) * recipe.train.epochs)
    )
    trainable = sum(one.numel() for one in model.parameters() if one.requires_grad)
    frozen = sum(
        one.numel() * one.element_size() for one in model.parameters() if not one.requires_grad
    )
    found: dict[str, Any] = {
        "model": f"{recipe.model.name}, grid {base.grid.rows}x{base.grid.columns}, images of {base.image_size} pixels",
        "records": len(data),
        "validation records": 0 if validation is None else len(validation),
        "tokens": f"{int(data.lengths.min())} to {int(data.lengths.max())}, mean {data.lengths.mean():.0f}",
        "images with targets": "not used" if data.targets is None else len(data.targets.keys),
        "optimiser steps": f"{steps} of {batch} samples",
        "trainable parameters": trainable,
        "frozen weights": _gigabytes(frozen),
        "device": "cpu" if cpu else "cuda",
        "deepspeed": recipe.deepspeed or "none",
    }
    sample = data[int(data.lengths.argmax())]  # reads the longest sample's images and targets
    if "error" in sample:
        raise UserError(sample["error"])
    device, host = _memory(model, config, trainable, frozen, ranks)
    free = _free_memory(cpu)
    if device > free:
        warn(
            f"the model states alone need {_gigabytes(device)} on the device, of which "
            f"{_gigabytes(free)} are free; "
            "try deepspeed=zero3, zero3-offload, or model.quantization=4bit"
        )
    return found | {
        "model states per device": _gigabytes(device),
        "model states on the host": _gigabytes(host),
        "free on the device": _gigabytes(free),
    }


def _free_memory(cpu: bool) -> int:
    """Free bytes of the device that this process would train on."""
    if cpu:
        import psutil

        return int(psutil.virtual_memory().available)
    import torch

    return int(torch.cuda.mem_get_info()[0])


def _memory(
    model: Any, config: dict[str, Any] | None, trainable: int, frozen: int, ranks: int
) -> tuple[float, float]:
    """Estimate the bytes of the model states per device and on the host, by DeepSpeed's formulas."""
    stage = zero_stage(config)
    if config is None or stage == 0:
        # float32 parameter, gradient and AdamW's two moments
        return frozen + 16 * trainable, 0.0
    zero = config["zero_optimization"]
    offload = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    if stage == 3:
        from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

        largest = max(
            sum(one.numel() for one in module.parameters(recurse=False))
            for module in model.modules()
        )
        parameters = zero.get("offload_param", {}).get("device", "none") != "none"
        host, device, _ = estimate_zero3_model_states_mem_needs(
            trainable, largest, ranks, 1, cpu_offload=offload, cpu_offload_params=parameters
        )
        resident = 0 if parameters else frozen / ranks
        host += frozen if parameters else 0
    else:
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

        host, device = estimate_zero2_model_states_mem_needs(
            trainable, ranks, 1, cpu_offload=offload
        )
        resident = frozen
    return device + resident, host


def _gigabytes(count: float) -> str:
    return f"{count / 2**30:.2f} GB"
