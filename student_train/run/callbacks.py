"""What happens beside the steps of a run.

Progress, early stopping, and an orderly end when the run is told to stop.
"""

import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from rich.progress import TaskID
from transformers import TrainerCallback

from shared.console import pace, progress, stderr
from shared.errors import UserError
from shared.files import whole_file
from shared.processes import is_main_process, this_process
from shared.recipe import Recipe, save_recipe
from student_train.adapter.files import RECIPE
from student_train.data.order import EpochOrder
from student_train.run.parts import Logs, RunArguments, RunControl, RunState
from student_train.run.terms import TERMS


def callbacks(
    recipe: Recipe, interrupt: "Interrupt", order: EpochOrder, begun: float
) -> list[TrainerCallback]:
    """Return the callbacks of a run; `begun` is when it was started (`time.perf_counter()`)."""
    found: list[TrainerCallback] = [Claim(recipe), Epochs(order), interrupt]
    if recipe.train.early_stopping:
        found.append(EarlyStopping(recipe.train.early_stopping, recipe.train.eval_steps))
    return [*found, Progress(begun)] if is_main_process() else found


class Claim(TrainerCallback):  # type: ignore[misc]
    """Keep the output folder this run's own.

    The recipe from the start, a log entry with every checkpoint.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def on_train_begin(
        self, args: RunArguments, state: RunState, control: RunControl, **_: object
    ) -> None:
        """Claim the folder."""
        if is_main_process():
            folder = Path(args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            whole_file(folder / RECIPE, lambda path: save_recipe(self.recipe, path))
        if self.recipe.train.best_metric is not None and state.best_global_step:
            state.best_model_checkpoint = _best_checkpoint(Path(args.output_dir), state)

    def on_step_end(
        self, args: RunArguments, state: RunState, control: RunControl, **_: object
    ) -> None:
        """Log at every checkpoint.

        A mean over steps on both sides of an interruption could not be resumed exactly.
        """
        control.should_log = control.should_log or control.should_save


class Epochs(TrainerCallback):  # type: ignore[misc]
    """Tell the order which epoch begins.

    Under several ranks accelerate wraps the sampler twice, and the Trainer's own `set_epoch` does
    not reach it: a resumed run would go on in the order of the first epoch.
    """

    def __init__(self, order: EpochOrder) -> None:
        self.order = order

    def on_epoch_begin(
        self, args: RunArguments, state: RunState, control: RunControl, **_: object
    ) -> None:
        """Count the epochs that are done; a resumed one is the one it was stopped in."""
        steps = math.ceil(len(self.order) / self.order.step)
        self.order.set_epoch(state.global_step // steps)


def launcher_line() -> str | None:
    """Return the launcher and its options, up to the command it starts; None without a launcher."""
    ranks = this_process().world
    if ranks == 1:
        return None
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    machines = ranks // here
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return f"deepspeed --num_gpus {here} --module student_train"
    nodes = f"--nnodes {machines} " if machines > 1 else ""
    return f"torchrun {nodes}--nproc-per-node {here} --no-python student --"


def _best_checkpoint(output: Path, state: RunState) -> str:
    """Return the best checkpoint of a resumed run, whose folder may have moved."""
    own = output / f"checkpoint-{state.best_global_step}"
    if own.is_dir():
        return str(own)
    if state.best_model_checkpoint is not None and Path(state.best_model_checkpoint).is_dir():
        return state.best_model_checkpoint
    raise UserError(
        f"the best checkpoint so far, {own.name}, is not in {output}; copy it there from where the "
        "run was begun"
    )


class Progress(TrainerCallback):  # type: ignore[misc]
    """A bar with rate and ETA on a terminal; a line per logged step above it, or in a log file.

    Whatever is printed while the bar stands goes through the bar's own console: elsewhere it would
    break the line.
    """

    def __init__(self, begun: float) -> None:
        self.begun, self.bars, self.first = begun, progress(), True
        self.task: TaskID | None = None
        self.started, self.start_step = 0.0, 0

    def on_train_begin(
        self, args: RunArguments, state: RunState, control: RunControl, **_: object
    ) -> None:
        """Show the bar."""
        self.started, self.start_step = time.perf_counter(), state.global_step
        self.bars.start()
        self.task = self.bars.add_task(
            "training",
            total=state.max_steps,
            completed=state.global_step,
            unit="steps",
            before=state.global_step,
        )

    def on_step_end(
        self, args: RunArguments, state: RunState, control: RunControl, **_: object
    ) -> None:
        """Advance the bar."""
        if self.first:
            now, self.first = time.perf_counter(), False
            spent, step = now - self.begun, now - self.started
            line = f"first step done {spent:.1f} s after the start ({step:.1f} s of it the step)"
            stderr.print(line, markup=False)
        if self.task is not None:
            self.bars.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: RunArguments,
        state: RunState,
        control: RunControl,
        logs: Logs | None = None,
        **_: object,
    ) -> None:
        """Print losses, in 80 columns."""
        held_out = any(name.startswith("eval_") for name in logs or {})
        shown = {
            name.removeprefix("eval_").removeprefix("loss_"): value
            for name, value in (logs or {}).items()
            if (name.startswith("eval_") if held_out else name in ("loss", *TERMS))
        }
        if not shown:
            return
        parts = [f"{'eval' if held_out else 'step'} {state.global_step}/{state.max_steps}"]
        parts += [f"{name} {value:.4g}" for name, value in shown.items()]
        done, seconds = state.global_step - self.start_step, time.perf_counter() - self.started
        left = pace(done, state.max_steps - state.global_step, seconds).left
        if left is not None and not held_out:
            parts.append(f"{left} left")
        stderr.print("  ".join(parts), markup=False)

    def on_train_end(
        self, args: RunArguments, state: RunState, control: RunControl, **_: object
    ) -> None:
        """Take the bar away."""
        self.bars.stop()


class EarlyStopping(TrainerCallback):  # type: ignore[misc]
    """Stop when the best metric is `patience` evaluations old.

    The state it reads survives a resume.
    """

    def __init__(self, patience: int, eval_steps: int) -> None:
        self.steps = patience * eval_steps

    def on_step_begin(
        self, args: RunArguments, state: RunState, control: RunControl, **_: object
    ) -> None:
        """Look before a step: the evaluation of the step before has been recorded by then."""
        best = state.best_global_step
        if best and state.global_step - best >= self.steps:
            control.should_training_stop = True


class Interrupt(TrainerCallback):  # type: ignore[misc]
    """On SIGTERM (or Ctrl-C) finish the step, save a checkpoint and end.

    All ranks stop at the same step.
    """

    def __init__(self) -> None:
        self.signal: str | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals inside the block; a second one ends the process as usual."""
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def note(number: int, _: FrameType | None) -> None:
            self.signal = signal.Signals(number).name
            signal.signal(number, before[signal.Signals(number)])

        try:
            for number in before:
                signal.signal(number, note)
        except ValueError:  # not the main thread: signals stay with whoever owns it
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_step_end(
        self, args: RunArguments, state: RunState, control: RunControl, **_: object
    ) -> None:
        """Ask every rank whether one of them was told to stop."""
        stop = self.signal is not None
        if args.world_size > 1:
            flag = torch.tensor(float(stop), device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            stop = bool(flag)
        if stop and state.global_step < state.max_steps:
            self.signal = self.signal or "another rank"
            control.should_save = control.should_training_stop = True
        elif stop:
            self.signal = None  # the run is at its end anyway

    def resume_command(self, recipe: Recipe, output: Path) -> str:
        """Return the command that continues the run.

        The one it was started with, and `--resume`; under a launcher the launcher's.
        """
        launched = launcher_line()
        if launched is not None:
            words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
            words = words if words[:1] == ["train"] else ["train", str(output / RECIPE)]
            again = [word for word in words if word != "--resume"]
            return f"{launched} {shlex.join([*again, '--resume'])}"
        program, words = Path(sys.argv[0]).name, sys.argv[1:]
        if program not in ("student", "medalign"):
            program, words = "student", ["train", str(output / RECIPE)]
        return shlex.join([program, *(word for word in words if word != "--resume"), "--resume"])
