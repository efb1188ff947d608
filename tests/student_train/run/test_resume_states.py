"""A run that is cut and resumed again and again, wherever and with any workers, is the undisturbed.

A state machine over (ranks, epoch, step, workers): each resume starts from a checkpoint that an
earlier resume wrote, and must end with the undisturbed run's losses and weights, bit for bit.
"""

import itertools
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from student_train.run.train import train
from tests.fixtures.launched import cut, launch, losses, tensors
from tests.fixtures.student_runs import changed, recipe, write_run

pytestmark = pytest.mark.integration
EPOCHS, STEPS_OF_AN_EPOCH = 3, 3  # 11 records in steps of 4
LAST = EPOCHS * STEPS_OF_AN_EPOCH


class Resumes(RuleBasedStateMachine):
    """One run, resumed again and again; `ranks` and `folder` are set by the test."""

    ranks: ClassVar[int]
    folder: ClassVar[Path]
    values: ClassVar[dict[str, Any]]
    numbers: ClassVar = itertools.count()

    def trained(self, folder: Path, workers: int, resume: bool = False) -> Path:
        """Train into a folder, here or on ranks."""
        if self.ranks > 1:
            return launch(
                self.values, folder, ranks=self.ranks, resume=resume, data__workers=workers
            )
        one = recipe(self.values, output=str(folder), data__workers=workers)
        return train(one, resume=resume)

    @initialize(workers=st.integers(0, 2))
    def undisturbed(self, workers: int) -> None:
        """Train from the start to the end."""
        self.whole = self.trained(self.folder / f"whole{next(self.numbers)}", workers)
        self.runs = [self.whole]
        assert [row[0] for row in losses(self.whole)] == list(range(1, LAST + 1))

    @rule(
        epoch=st.integers(0, EPOCHS - 1),
        step=st.integers(1, STEPS_OF_AN_EPOCH),
        workers=st.integers(0, 2),
    )
    def cut_and_resumed(self, epoch: int, step: int, workers: int) -> None:
        """Go back to a checkpoint of the newest run that wrote it, and on to the end."""
        at = min(epoch * STEPS_OF_AN_EPOCH + step, LAST - 1)
        wrote = [one for one in self.runs if (one / f"checkpoint-{at}").is_dir()]
        part = cut(wrote[-1], self.folder / f"part{next(self.numbers)}", at)
        self.runs.append(self.trained(part, workers, resume=True))
        assert losses(self.runs[-1]) == losses(self.whole), at
        found, expected = tensors(self.runs[-1]), tensors(self.whole)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), at


def states(folder: Path, ranks: int, examples: int, count: int) -> None:
    """Run the machine on `ranks` ranks: so many examples of so many resumes."""
    values = changed(
        write_run(folder / "inputs", records=11, text_only=2),
        train__epochs=float(EPOCHS),
        train__save_steps=1,
        train__keep_checkpoints=LAST,
        lora__dropout=0.2,
    )
    machine = type("Machine", (Resumes,), {"ranks": ranks, "folder": folder, "values": values})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=count,
            deadline=None,
            phases=[Phase.generate],  # a smaller case would cost many more trainings
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_on_one_rank(tmp_path: Path) -> None:
    states(tmp_path, ranks=1, examples=3, count=3)


@pytest.mark.slow
def test_on_two_ranks(tmp_path: Path) -> None:
    states(tmp_path, ranks=2, examples=1, count=3)
