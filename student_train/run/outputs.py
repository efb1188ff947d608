"""A run's output folder.

Refused where another run lives, found again for resuming, finished as one whole.
"""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from shared.console import note
from shared.errors import UserError
from shared.processes import is_main_process
from shared.recipe import Recipe, load_recipe, recipe_keys
from student_train.adapter.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    RECIPE,
    ROTATION_WEIGHTS,
    is_whole,
)
from student_train.adapter.provenance import PROVENANCE

if TYPE_CHECKING:
    from student_train.adapter.card import Taught
    from student_train.data.join import Join
    from student_train.data.samples import AlignmentData
    from student_train.run.parts import RunState

TRAINER_STATE = "trainer_state.json"
TRAINABLE_WEIGHTS = "trainable.safetensors"  # of a checkpoint without DeepSpeed
_TRACES = (
    RECIPE,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    ROTATION_WEIGHTS,
    TRAINER_STATE,
    "config.json",
)
# What may change between a run and its continuation: nothing that the losses or their order depend
# on.
_FREE = (
    "output",
    "deepspeed",
    "evaluation",
    "data.workers",
    "data.prefetch",
    "targets.store",
    "train.device",
)
_TARGETS = ("targets.teacher", "targets.fingerprint")
_FREE_TRAIN = (
    "logging_steps",
    "save_steps",
    "keep_checkpoints",
    "report_to",
    "run_name",
    "push_to_hub",
    "batch_size",
    "accumulation",
)


def check_output(output: Path, recipe: Recipe, resume: bool) -> Path | None:
    """Return the checkpoint to resume from, None for a fresh run.

    Raises
    ------
    UserError
        A folder that already holds a run (without `resume`), another recipe's run or no checkpoint
        (with it).
    """
    traces = [name for name in _TRACES if (output / name).exists()] + [
        path.name for path in _checkpoints(output)
    ]
    if not resume:
        if traces:
            raise UserError(
                f"{output} already holds a run ({traces[0]}); choose another output=..., or "
                "continue it with --resume"
            )
        return None
    if not (output / RECIPE).is_file():
        raise UserError(f"{output} holds no run to resume; leave --resume out")
    checkpoint = last_checkpoint(output)
    remembered = checkpoint is not None and (checkpoint / PROVENANCE).is_file()
    changed = changed_keys(load_recipe(output / RECIPE), recipe, remembered)
    if changed:
        key, before, now = changed[0]
        raise UserError(
            f"{output} was begun with {key}={before}, the recipe now says {now}; a resumed run "
            "keeps it"
        )
    if checkpoint is None and is_whole(output):
        raise UserError(
            f"{output} holds no checkpoint to resume from, but a trained adapter, which is whole: "
            f"`student inspect {output}` shows it, student_train.load loads it; nothing is left "
            "to train"
        )
    if checkpoint is None:
        raise UserError(
            f"{output} holds no whole checkpoint to resume from; remove the folder and start again"
        )
    return checkpoint


def changed_keys(
    before: Recipe, now: Recipe, remembered: bool = False
) -> list[tuple[str, object, object]]:
    """List the keys with another value that a continued run must not change: (key, before, now).

    Where the namespaces themselves are `remembered`, how the recipe chooses them is free.
    """
    free = {*_FREE, *(_TARGETS if remembered else ()), *(f"train.{name}" for name in _FREE_TRAIN)}
    found = []
    for key in recipe_keys():
        if key in free or key.partition(".")[0] in free:
            continue
        values = []
        for recipe in (before, now):
            value: object = recipe
            for part in key.split("."):
                value = getattr(value, part)
            values.append(value)
        if key == "data.padding" and values[1] is None:
            continue  # the store's colour again
        if values[0] != values[1]:
            found.append((key, values[0], values[1]))
    return found


def last_checkpoint(output: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end (its trainer state comes last)."""
    whole = [path for path in _checkpoints(output) if (path / TRAINER_STATE).is_file()]
    return max(whole, key=_step, default=None)


def partial_checkpoints(output: Path) -> list[Path]:
    """Return the checkpoints that were not written to their end."""
    return [path for path in _checkpoints(output) if not (path / TRAINER_STATE).is_file()]


def _checkpoints(output: Path) -> list[Path]:
    return [
        path for path in output.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)
    ]


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


@runtime_checkable
class _Trained(Protocol):
    """The trainer of a run that is over."""

    state: "RunState"
    train_dataset: "AlignmentData"

    def save_model(self, output_dir: str) -> None: ...


def _teachers(joined: "Join | None") -> "list[Taught]":
    from student_train.adapter.card import Taught

    found = []
    for store in [] if joined is None else joined.stores:
        licence = store.namespace.provenance.get("licence")
        found.append(
            Taught(
                store.identity.teacher,
                None if licence is None else str(licence),
                store.identity.fingerprint(),
            )
        )
    return found


def finish(trainer: _Trained, recipe: Recipe, output: Path, adapter: bool) -> None:
    """Write the run's result into the output folder; all ranks call it together."""
    best = trainer.state.best_model_checkpoint if recipe.train.best_metric is not None else None
    if best is None or not adapter:
        trainer.save_model(str(output))
    elif is_main_process():
        for name in (RECIPE, PROVENANCE, ROTATION_WEIGHTS, ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            if (Path(best) / name).is_file():
                shutil.copy2(Path(best) / name, output / name)
    if not is_main_process():
        return
    trainer.state.save_to_json(str(output / TRAINER_STATE))
    from student_train.adapter.card import write_card

    write_card(recipe, output, trainer.state.log_history, _teachers(trainer.train_dataset.targets))
    if best is not None:
        note(f"kept {Path(best).name}: {recipe.train.best_metric} {trainer.state.best_metric:.4g}")
    if recipe.train.push_to_hub is not None:
        from student_train.adapter.export import push

        push(output, recipe.train.push_to_hub)
    note(f"done: {output}")
