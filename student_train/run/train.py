"""`student train`: from a recipe to an adapter folder.

For the projector's warm-up: to a model folder.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safetensors import SafetensorError

from shared.console import note
from shared.errors import UserError
from shared.processes import is_main_process, this_process
from shared.recipe import Recipe, save_recipe
from student_train.adapter.provenance import Provenance, describe, write_provenance
from student_train.run.beginning import Beginning, begin
from student_train.run.deepspeed_file import zero_stage
from student_train.run.environment import process_group
from student_train.run.origin import check_teachers, checked_weights
from student_train.run.outputs import finish, last_checkpoint
from student_train.run.resharding import adapt_checkpoint
from student_train.run.unwritten import unwritten
from student_train.upstream import fresh_accelerate

if TYPE_CHECKING:
    from torch import Tensor

    from student_train.attention import Channel
    from student_train.data.join import ComputeTargets
    from student_train.data.samples import AlignmentData
    from student_train.imagetext import ImageTextModel
    from student_train.models.base import BaseStudent
    from student_train.run.callbacks import Interrupt
    from student_train.run.evaluation import Score
    from student_train.run.trainer import AlignmentTrainer, SaveModel


def train(
    recipe: Recipe,
    *,
    compute_targets: "ComputeTargets | None" = None,
    score: "Score | None" = None,
    resume: bool = False,
    repeats: Path | None = None,
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
    repeats
        The recipe's file. The recipe that a run saved repeats that run: with its base, its data
        files and its targets, or not at all.

    Raises
    ------
    UserError
        Anything that the user can mend: see the messages.
    """
    run = begin(
        recipe,
        resume=resume,
        repeats=repeats,
        scored=score is not None,
        computed=compute_targets is not None,
    )
    with process_group(run.cpu, run.config is not None), fresh_accelerate():
        if run.checkpoint is not None:
            if is_main_process():
                step = run.checkpoint.name.rpartition("-")[2]
                note(f"goes on behind step {step}, from {run.checkpoint}")
            adapt_checkpoint(run.checkpoint, run.config, this_process().world)
        return _train(run, compute_targets, score)


class _Trained(NamedTuple):
    """What a run trains: a hooked student, or the projector alone."""

    model: "ImageTextModel"
    channel: "Channel | None"
    save: "SaveModel"


def _train(run: Beginning, compute_targets: "ComputeTargets | None", score: "Score | None") -> Path:
    from transformers import set_seed

    from student_train.run.callbacks import Interrupt
    from student_train.run.inputs import (
        load_student_base,
        padded,
        prepare_data,
        teachers_of,
    )

    recipe, output = run.recipe, run.output
    set_seed(recipe.train.seed)
    weights = checked_weights(run.origin, recipe) if is_main_process() else ""
    base = load_student_base(recipe)
    data = prepare_data(recipe, base, compute_targets)
    recipe = padded(recipe, data[0].processor.padding)
    run, teachers = run._replace(recipe=recipe), teachers_of(data[0].targets)
    check_teachers(run.origin, teachers)
    provenance = describe(recipe, weights, teachers)
    set_seed(recipe.train.seed)  # whatever loading drew, the adapter starts the same
    adapted = recipe.train.tune == "lora"
    trained = (_adapter if adapted else _projector)(run, base, provenance)
    interrupt = Interrupt()
    trainer = _trainer(run, base, trained, data, score, interrupt)
    with interrupt.listening():
        try:
            trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise worker_fault(error) or unwritten(error, output) or error from None
    if interrupt.signal is not None:
        if is_main_process():
            note(f"stopped by {interrupt.signal}; the checkpoint is {last_checkpoint(output)}")
            note(f"resume with: {interrupt.resume_command(recipe, output)}")
        return output
    try:
        finish(trainer, recipe, output, adapted)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise unwritten(error, output) or error from None
    return output


def worker_fault(error: Exception) -> UserError | None:
    """Return one line for torch's error of a data worker that was killed; None for another."""
    reason = " ".join(str(error).split())
    if not reason.startswith("DataLoader worker"):
        return None
    return UserError(
        f"a process that reads the data was killed, most often for want of memory ({reason[:150]});"
        " lower data.workers or data.prefetch and go on with --resume, or start again where no "
        "checkpoint was written"
    )


def _trainer(
    run: Beginning,
    base: "BaseStudent",
    trained: _Trained,
    data: "tuple[AlignmentData, AlignmentData | None]",
    score: "Score | None",
    interrupt: "Interrupt",
) -> "AlignmentTrainer":
    from transformers import PrinterCallback

    from student_train.run.arguments import training_arguments
    from student_train.run.callbacks import callbacks
    from student_train.run.evaluation import make_evaluation
    from student_train.run.inputs import make_collator, make_order
    from student_train.run.trainer import AlignmentTrainer
    from student_train.student import trainable_state

    recipe, (train_data, validation) = run.recipe, data
    arguments = training_arguments(recipe, run.output, run.cpu, run.config)
    evaluation = None
    if validation is not None:
        processor = base.processor(recipe.data.geometry, recipe.data.padding)
        evaluation = make_evaluation(recipe, validation, processor, score)
    order = make_order(train_data, recipe, arguments)
    trainer = AlignmentTrainer(
        model=trained.model,
        args=arguments,
        data_collator=make_collator(recipe, base),
        train_dataset=train_data,
        eval_dataset=validation,
        callbacks=callbacks(recipe, interrupt, order, run.begun),
        recipe=recipe,
        channel=trained.channel,
        order=order,
        save_model_to=trained.save,
        trainable=lambda: trainable_state(trained.model),
        evaluate_with=evaluation,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _adapter(run: Beginning, base: "BaseStudent", provenance: Provenance) -> _Trained:
    """Put adapter, rotation and hooks on the base model."""
    from student_train.adapter.files import save_adapter
    from student_train.student import make_student

    student = make_student(base.model, base.image_token_id, run.recipe)
    student.channel.spare_image = base.image_size if zero_stage(run.config) == 3 else 0

    def save(folder: Path, state: "Mapping[str, Tensor]") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_provenance(folder, provenance)
        save_adapter(student, run.recipe, folder, state)

    return _Trained(student.model, student.channel, save)


def _projector(run: Beginning, base: "BaseStudent", provenance: Provenance) -> _Trained:
    """Freeze all but the projector (LLaVA's first stage)."""
    from student_train.adapter.files import RECIPE
    from student_train.models.base import connector
    from student_train.models.saving import save_base

    base.model.requires_grad_(False)
    connector(base.model).requires_grad_(True)

    def save(folder: Path, state: "Mapping[str, Tensor]") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_provenance(folder, provenance)
        if folder == run.output:
            save_base(replace(base, geometry=run.recipe.data.geometry), folder)
        else:
            save_recipe(run.recipe, folder / RECIPE)

    return _Trained(base.model, None, save)
