"""An interrupted and resumed run equals an undisturbed one, bit for bit; how it is resumed."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from shared.errors import UserError
from student_train.run.outputs import last_checkpoint
from student_train.run.train import train
from tests.fixtures.student_runs import changed, recipe, write_run

pytestmark = pytest.mark.integration
# Dropout, two epochs of three steps, a checkpoint in the middle of the second: everything that
# draws is on.
# steps whose lines fill the pipe that nobody reads: a run cannot end before the signal comes
MANY = 4000
SETTINGS = {
    "train__epochs": 2.0,
    "train__save_steps": 4,
    "train__keep_checkpoints": 5,
    "lora__dropout": 0.2,
}


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("resume"), records=11)


def losses(output):
    rows = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [
        (row["step"], row["loss"], row["loss_vis"], row["loss_att"], row["grad_norm"])
        for row in rows
        if "loss_lm" in row
    ]


def tensors(output):
    return load_file(output / "adapter_model.safetensors") | load_file(
        output / "rotation.safetensors"
    )


def cut(whole, copy, step=4):
    """What the folder looked like just after the checkpoint of `step`."""
    copy.mkdir()
    shutil.copy2(whole / "recipe.yaml", copy)
    shutil.copytree(whole / f"checkpoint-{step}", copy / f"checkpoint-{step}")
    return copy


def assert_same(first, second):
    assert losses(first) == losses(second)
    found, other = tensors(first), tensors(second)
    assert found.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in found.items())


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create:UserWarning"
)  # on a machine of one core
@pytest.mark.parametrize(("deepspeed", "workers"), [("none", 0), ("zero2", 0), ("none", 2)])
def test_resumed_is_uninterrupted(values, tmp_path, deepspeed, workers, capsys):
    settings = {**SETTINGS, "deepspeed": deepspeed, "data__workers": workers}
    whole = train(recipe(values, output=str(tmp_path / "whole"), **settings))
    assert [row[0] for row in losses(whole)] == [1, 2, 3, 4, 5, 6]
    part = cut(whole, tmp_path / "part")
    capsys.readouterr()
    train(recipe(values, output=str(part), **settings), resume=True)
    assert f"goes on behind step 4, from {part / 'checkpoint-4'}" in capsys.readouterr().err
    assert_same(whole, part)


def test_resuming_is_refused_where_it_would_be_another_run(values, tmp_path):
    whole = train(recipe(values, output=str(tmp_path / "whole"), **SETTINGS))
    with pytest.raises(UserError, match=r"train.learning_rate=0.01, the recipe now says 0.02"):
        train(recipe(values, output=str(whole), **SETTINGS, train__learning_rate=0.02), resume=True)
    for checkpoint in whole.glob("checkpoint-*"):
        (
            checkpoint / "trainer_state.json"
        ).unlink()  # written last: without it the checkpoint is not whole
    with pytest.raises(UserError, match=r"no checkpoint to resume from, but a trained adapter"):
        train(recipe(values, output=str(whole), **SETTINGS), resume=True)
    (whole / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="no whole checkpoint"):
        train(recipe(values, output=str(whole), **SETTINGS), resume=True)
    with pytest.raises(UserError, match="no run to resume"):
        train(recipe(values, output=str(tmp_path / "new"), **SETTINGS), resume=True)


def test_sigterm_saves_a_checkpoint_and_names_the_command_that_resumes(values, tmp_path):
    settings = {
        **SETTINGS,
        "train__max_steps": MANY,
        "train__save_steps": 0,
        "output": str(tmp_path / "run"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(values, **settings)))
    student = shutil.which("student", path=Path(sys.executable).parent)
    assert student is not None
    process = subprocess.Popen(
        [student, "train", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.startswith("step 2/"):
            break
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 0, said
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()  # the run is not finished
    assert f"student train {path} --resume" in said
    step = int(checkpoint.name.rpartition("-")[2])
    assert 2 <= step < MANY
    # The command works: stop the continuation too, a few steps later.
    command = next(
        line for line in said.splitlines() if line.startswith("resume with: ")
    ).removeprefix("resume with: ")
    process = subprocess.Popen(
        [student, *command.split()[1:]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.startswith(f"step {step + 2}/"):
            break
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 0
    assert int(last_checkpoint(tmp_path / "run").name.rpartition("-")[2]) > step
