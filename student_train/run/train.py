"""`student train`.

From a recipe to an adapter folder (or, for the projector's warm-up, to a model folder).
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.console import say
from shared.errors import UserError
from shared.processes import is_main_process
from shared.recipe import Recipe, save_recipe
from shared.records import Record, image_root_of, load_records
from student_train.run.environment import (
    check_hub,
    check_trackers,
    deepspeed_config,
    process_group,
    use_cpu,
    zero_stage,
)
from student_train.run.outputs import check_output, finish, last_checkpoint
from student_train.run.resharding import adapt_checkpoint, check_effective_batch

if TYPE_CHECKING:
    from student_train.data.join import ComputeTargets
    from student_train.data.samples import AlignmentData
    from student_train.models.base import BaseStudent

Score = Callable[[Sequence[Record], Sequence[str]], Mapping[str, float]]


def train(
    recipe: Recipe,
    *,
    compute_targets: "ComputeTargets | None" = None,
    score: Score | None = None,
    resume: bool = False,
) -> Path:
    """Fine-tune as the recipe says and return the output folder.

    Parameters
    ----------
    recipe
        See `shared.recipe.fields`.
    compute_targets
        Gives the targets of images where `targets.on_missing` is `compute`; `pipelines` hands a
        teacher in.
    score
        Rates the answers generated in evaluations: records and answers to named scores (for
        `train.best_metric`).
    resume
        Continue from the last whole checkpoint in the output folder.

    Raises
    ------
    UserError
        Anything that the user can mend: see the messages.
    """
    begun = time.perf_counter()
    cpu, config = use_cpu(recipe), deepspeed_config(recipe)
    if recipe.train.tune == "projector" and zero_stage(config) == 3:
        raise UserError(
            "train.tune=projector saves the whole model, which ZeRO-3 shards; use deepspeed=zero2"
        )
    check_trackers(recipe)
    check_hub(recipe)
    output = Path(recipe.output)
    checkpoint = check_output(output, recipe, resume)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if checkpoint is not None:
        check_effective_batch(checkpoint, recipe, ranks)
    with process_group(cpu, config is not None), _fresh_accelerate():
        if checkpoint is not None:
            adapt_checkpoint(checkpoint, config, ranks)
        return _train(recipe, output, cpu, config, checkpoint, compute_targets, score, begun)


def _train(
    recipe: Recipe,
    output: Path,
    cpu: bool,
    config: dict[str, Any] | None,
    checkpoint: Path | None,
    compute_targets: "ComputeTargets | None",
    score: Score | None,
    begun: float,
) -> Path:
    from transformers import PrinterCallback, set_seed

    from student_train.data.samples import EpochOrder
    from student_train.models.base import save_base
    from student_train.models.processor import Processor
    from student_train.run.arguments import load_student_base, make_collator, training_arguments
    from student_train.run.callbacks import Interrupt, callbacks
    from student_train.run.evaluation import make_evaluation
    from student_train.run.trainer import AlignmentTrainer
    from student_train.student import RECIPE, make_student, save_adapter, trainable_state

    set_seed(recipe.train.seed)
    base = load_student_base(recipe, config)
    train_data, validation_data = prepare_data(recipe, base, compute_targets)
    set_seed(recipe.train.seed)  # whatever loading drew, the adapter starts the same
    student = None
    if recipe.train.tune == "lora":
        student = make_student(base.model, base.image_token_id, recipe)
        model, channel = student.model, student.channel
        channel.spare_image = base.image_size if zero_stage(config) == 3 else 0
    else:
        model, channel = _projector_only(base), None
    arguments = training_arguments(recipe, output, cpu, config)
    per_step = (
        arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    )
    segments = None
    if recipe.data.group_by_segment and train_data.targets is not None:
        segments = train_data.targets.segments(
            [one.references(train_data.image_root) for one in train_data.records]
        )
    order = EpochOrder(
        train_data.lengths,
        recipe.train.seed,
        per_step,
        arguments.train_batch_size * arguments.world_size if arguments.world_size > 1 else 1,
        segments,
    )

    def write(folder: Path, state: Mapping[str, Any]) -> None:
        if student is not None:
            save_adapter(student, recipe, folder, state)
        elif folder == output:
            save_base(base, folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            save_recipe(recipe, folder / RECIPE)

    processor = Processor.of(base, recipe.data.geometry)
    evaluation = (
        make_evaluation(recipe, validation_data, processor, score)
        if validation_data is not None
        else None
    )
    interrupt = Interrupt()
    trainer = AlignmentTrainer(
        model=model,
        args=arguments,
        data_collator=make_collator(recipe, base),
        train_dataset=train_data,
        eval_dataset=validation_data,
        callbacks=callbacks(recipe, interrupt, begun),
        recipe=recipe,
        channel=channel,
        order=order,
        save_model_to=write,
        trainable=lambda: trainable_state(model),
        evaluate_with=evaluation,
    )
    trainer.remove_callback(PrinterCallback)
    with interrupt.listening():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    if interrupt.signal is not None:
        if is_main_process():
            say(f"stopped by {interrupt.signal}; the checkpoint is {last_checkpoint(output)}")
            say(f"resume with: {interrupt.resume_command(recipe, output)}")
        return output
    finish(trainer, recipe, output, student is not None)
    return output


def prepare_data(
    recipe: Recipe, base: "BaseStudent", compute_targets: "ComputeTargets | None" = None
) -> "tuple[AlignmentData, AlignmentData | None]":
    """Read and check the records, join them with the store.

    The validation set only where evaluations are wanted.

    Raises
    ------
    UserError
        No training data named, and everything that `AlignmentData` and `join` refuse.
    """
    from shared.imaging.squares import image_reader
    from student_train.data.join import join, open_stores
    from student_train.data.samples import AlignmentData, Prepared

    if recipe.data.train is None:
        raise UserError(
            "data.train is not set; name the training file, such as data.train=train.json"
        )
    reader = image_reader(base.image_processor, base.image_size, recipe.data.geometry)
    prepared = Prepared(
        base.template, base.tokenizer, base.image_token_id, base.image_tokens, reader
    )
    aligned = recipe.train.tune == "lora" and bool(recipe.losses.alpha or recipe.losses.beta)
    stores = open_stores(recipe, base.grid) if aligned else []

    def make(path: str, limit: int = 0) -> "AlignmentData":
        root = image_root_of(path, recipe.data.image_root)
        records = load_records(path)[: limit or None]
        joined = join(records, path, root, recipe, stores, compute_targets) if aligned else None
        return AlignmentData(
            records,
            root,
            prepared,
            joined,
            recipe.data.max_length,
            recipe.data.truncation,
            not is_main_process(),
        )

    train_data = make(recipe.data.train)
    if recipe.data.validation is None or not recipe.train.eval_steps:
        return train_data, None
    return train_data, make(recipe.data.validation, recipe.train.eval_samples)


def _projector_only(base: "BaseStudent") -> Any:
    """Freeze all but the projector (LLaVA's first stage)."""
    from student_train.models.base import connector

    base.model.requires_grad_(False)
    connector(base.model).requires_grad_(True)
    return base.model


@contextmanager
def _fresh_accelerate() -> Iterator[None]:
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
