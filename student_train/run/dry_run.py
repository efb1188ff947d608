"""`student train --dry-run`: load and check everything, estimate the memory, train nothing."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shared.console import size, warn
from shared.errors import UserError
from shared.processes import this_process
from shared.recipe import Recipe
from student_train.run.beginning import begin
from student_train.run.deepspeed_file import DeepSpeedConfig, zero_stage
from student_train.run.origin import check_teachers, checked_weights

if TYPE_CHECKING:
    from student_train.data.join import ComputeTargets
    from student_train.data.samples import AlignmentData
    from student_train.imagetext import ImageTextModel
    from student_train.models.base import BaseStudent


class _Sizes(NamedTuple):
    """Sizes that the memory follows from."""

    trainable: int  # parameters
    frozen: int  # bytes
    largest: int  # parameters of the largest module
    ranks: int


def dry_run(
    recipe: Recipe,
    compute_targets: "ComputeTargets | None" = None,
    resume: bool = False,
    repeats: Path | None = None,
    scored: bool = False,
) -> dict[str, object]:
    """Check recipe, model, records, images and targets as a run would; return what it would be.

    The memory is DeepSpeed's own estimate of the model states for the trainable parameters, plus
    the frozen weights, which its estimators do not know of; activations come on top. More than this
    machine has free is a warning.

    Raises
    ------
    UserError
        Whatever would stop the run before its first step.
    """
    from student_train.run.inputs import load_student_base, prepare_data, teachers_of

    run = begin(
        recipe,
        resume=resume,
        repeats=repeats,
        scored=scored,
        computed=compute_targets is not None,
    )
    recipe, cpu, config = run.recipe, run.cpu, run.config
    checked_weights(run.origin, recipe)
    base = load_student_base(recipe)
    data, validation = prepare_data(recipe, base, compute_targets)
    check_teachers(run.origin, teachers_of(data.targets))
    sizes = _sizes(_trained_model(recipe, base))
    found = _described(recipe, base, data, validation) | {
        "trainable parameters": sizes.trainable,
        "frozen weights": size(sizes.frozen),
        "device": "cpu" if cpu else "cuda",
        "deepspeed": recipe.deepspeed or "none",
    }
    sample = data[int(data.lengths.argmax())]  # reads the longest sample's images and targets
    if "error" in sample:
        raise UserError(sample["error"])
    device, host = _memory(config, sizes)
    free = _free_memory(cpu)
    if device > free:
        warn(
            f"the model states alone need {size(device)} on the device, of which "
            f"{size(free)} are free; "
            "try deepspeed=zero3, zero3-offload, or model.quantization=4bit"
        )
    return found | {
        "model states per device": size(device),
        "model states on the host": size(host),
        "free on the device": size(free),
    }


def _trained_model(recipe: Recipe, base: "BaseStudent") -> "ImageTextModel":
    from student_train.models.base import connector
    from student_train.student import make_student

    if recipe.train.tune == "lora":
        return make_student(base.model, base.image_token_id, recipe).model
    connector(base.model).requires_grad_(True)
    return base.model


def _described(
    recipe: Recipe,
    base: "BaseStudent",
    data: "AlignmentData",
    validation: "AlignmentData | None",
) -> dict[str, object]:
    batch = recipe.train.batch_size * recipe.train.accumulation * this_process().world
    shares = data.shares
    samples = len(data) if shares is None else sum(one.taken for one in shares)
    steps = optimiser_steps(recipe, samples, batch)
    lengths, grid = data.lengths, base.grid
    return {
        "model": f"{recipe.model.name}, grid {grid.rows}x{grid.columns}, "
        f"images of {base.image_size} pixels",
        "records": len(data),
        "validation records": 0 if validation is None else len(validation),
        "tokens": f"{int(lengths.min())} to {int(lengths.max())}, mean {lengths.mean():.0f}",
        "images with targets": "not used" if data.targets is None else len(data.targets.keys),
        "optimiser steps": f"{steps} of {batch} samples",
    }


def optimiser_steps(recipe: Recipe, samples: int, batch: int) -> int:
    """Count the steps of a run as the Trainer does: a part of a step is a step."""
    if recipe.train.max_steps > 0:
        return recipe.train.max_steps
    return math.ceil(-(-samples // batch) * recipe.train.epochs)


def _sizes(model: "ImageTextModel") -> _Sizes:
    trained = [one for one in model.parameters() if one.requires_grad]
    frozen = [one for one in model.parameters() if not one.requires_grad]
    return _Sizes(
        sum(one.numel() for one in trained),
        sum(one.numel() * one.element_size() for one in frozen),
        max(
            sum(one.numel() for one in module.parameters(recurse=False))
            for module in model.modules()
        ),
        this_process().world,
    )


def _free_memory(cpu: bool) -> int:
    """Free bytes of the device that this process would train on."""
    if cpu:
        import psutil

        return int(psutil.virtual_memory().available)
    import torch

    return int(torch.cuda.mem_get_info()[0])


def _memory(config: DeepSpeedConfig | None, sizes: _Sizes) -> tuple[float, float]:
    """Estimate the bytes of the model states per device and on the host, as DeepSpeed does."""
    stage = zero_stage(config)
    if config is None or stage == 0:
        # float32 parameter, gradient and AdamW's two moments
        return sizes.frozen + 16 * sizes.trainable, 0.0
    zero = config["zero_optimization"]
    offload = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    if stage == 3:
        return _stage3(
            offload, zero.get("offload_param", {}).get("device", "none") != "none", sizes
        )
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    host, device = estimate_zero2_model_states_mem_needs(
        sizes.trainable, sizes.ranks, 1, cpu_offload=offload
    )
    return device + sizes.frozen, host


def _stage3(offload: bool, parameters: bool, sizes: _Sizes) -> tuple[float, float]:
    """Estimate for ZeRO-3, whose optimiser and parameters may live on the host."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    host, device, _ = estimate_zero3_model_states_mem_needs(
        sizes.trainable,
        sizes.largest,
        sizes.ranks,
        1,
        cpu_offload=offload,
        cpu_offload_params=parameters,
    )
    if parameters:
        return device, host + sizes.frozen
    return device + sizes.frozen / sizes.ranks, host
