"""From the recipe to the Trainer's arguments."""

import math
from pathlib import Path

from shared.recipe import Recipe
from student_train.run.deepspeed_file import DeepSpeedConfig
from student_train.run.parts import RunArguments
from student_train.upstream import use_one_gpu


def training_arguments(
    recipe: Recipe, output: Path, cpu: bool, config: DeepSpeedConfig | None
) -> RunArguments:
    """Translate the recipe's `train` section."""
    from transformers import TrainingArguments

    section = recipe.train
    evaluated = section.eval_steps > 0 and recipe.data.validation is not None
    # The best checkpoint can only be kept if there is one at each evaluation.
    save_steps = section.eval_steps if section.best_metric is not None else section.save_steps
    checkpointing = section.gradient_checkpointing
    arguments: RunArguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=section.batch_size,
        per_device_eval_batch_size=section.batch_size,
        gradient_accumulation_steps=section.accumulation,
        num_train_epochs=section.epochs,
        max_steps=section.max_steps,
        learning_rate=section.learning_rate,
        lr_scheduler_type=section.schedule,
        # below 1 it is a share of the steps, from 1 on a number of them
        warmup_steps=min(section.warmup_ratio, math.nextafter(1.0, 0.0)),
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        optim="adamw_torch_fused",  # one pass over W and its moments
        seed=section.seed,
        use_cpu=cpu,
        bf16=config is not None and bool(config["bf16"]["enabled"]),
        logging_steps=section.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 1,
        save_total_limit=section.keep_checkpoints,
        eval_strategy="steps" if evaluated else "no",
        eval_steps=section.eval_steps or None,
        metric_for_best_model=section.best_metric,
        greater_is_better=_greater_is_better(section.best_metric),
        activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        # Not persistent: an epoch's workers draw one number for their seeds, as no workers do, so
        # that dropout is the same under any number of them, and after a resume.
        dataloader_num_workers=recipe.data.workers,
        dataloader_prefetch_factor=recipe.data.prefetch if recipe.data.workers else None,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        label_names=["labels"],
        ddp_find_unused_parameters=False,
        report_to=list(section.report_to),
        run_name=section.run_name or output.name,
        deepspeed=config,
        disable_tqdm=True,
    )
    use_one_gpu(arguments)
    return arguments


def _greater_is_better(metric: str | None) -> bool | None:
    return None if metric is None else "loss" not in metric
