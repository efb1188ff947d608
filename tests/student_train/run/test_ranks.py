"""Two ranks under every ZeRO stage.

The losses of one rank, a complete adapter, an exact resume, another rank count.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import student_train
from student_train.run.outputs import last_checkpoint
from student_train.run.train import train
from tests.fixtures.launch_training import QUESTIONS
from tests.fixtures.launched import SHARDED, cut, free_port, launch, losses, tensors
from tests.fixtures.student_runs import changed, recipe, write_run

pytestmark = [pytest.mark.integration, pytest.mark.slow]
STAGES = ["none", "zero0", "zero1", "zero2", "zero3", SHARDED, "zero2-offload", "zero3-offload"]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    # 11 records, the last two text-only: fillers are needed, and ranks meet micro-batches with and
    # without an image.
    values = write_run(tmp_path_factory.mktemp("ranks"), records=11, text_only=2)
    return changed(
        values,
        train__max_steps=4,
        train__save_steps=2,
        train__epochs=2.0,
        train__keep_checkpoints=9,
    )


@pytest.fixture(scope="module")
def reference(values, tmp_path_factory):
    """One rank, no DeepSpeed, the same effective batch of 4."""
    return train(
        recipe(values, output=str(tmp_path_factory.mktemp("one") / "run"), deepspeed="none")
    )


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks(values, reference, tmp_path, stage):
    whole = launch(values, tmp_path / "whole", deepspeed=stage)
    torch.testing.assert_close(
        torch.tensor(losses(whole)), torch.tensor(losses(reference)), atol=1e-6, rtol=2e-4
    )
    found, expected = tensors(whole), tensors(reference)
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: one.shape for name, one in expected.items()
    }
    model, processor = student_train.load(whole)
    images = [[f"{values['data']['image_root']}/image{number}.png"] for number in (0, 1)]
    with torch.no_grad():
        logits = model(**processor.encode(QUESTIONS, images)).logits[:, -3:]
    assert torch.equal(logits, torch.load(whole / "logits.pt", weights_only=True))

    part = launch(values, cut(whole, tmp_path / "part"), deepspeed=stage, resume=True)
    assert losses(part) == losses(whole)
    resumed = tensors(part)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in found.items())


@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero2", "zero3"])
def test_resume_on_one_rank_what_two_began(values, tmp_path, stage):
    whole = launch(values, tmp_path / "whole", deepspeed=stage)
    part = launch(values, cut(whole, tmp_path / "part"), ranks=1, deepspeed=stage, resume=True)
    torch.testing.assert_close(
        torch.tensor(losses(part)), torch.tensor(losses(whole)), atol=1e-6, rtol=2e-4
    )
    found = tensors(part)
    for name, tensor in tensors(whole).items():
        torch.testing.assert_close(found[name], tensor, atol=2e-4, rtol=2e-3)


def test_resume_on_two_ranks_what_one_began(values, tmp_path):
    whole = launch(values, tmp_path / "whole", ranks=1, deepspeed="zero2")
    part = launch(values, cut(whole, tmp_path / "part"), ranks=2, deepspeed="zero2", resume=True)
    torch.testing.assert_close(
        torch.tensor(losses(part)), torch.tensor(losses(whole)), atol=1e-6, rtol=2e-4
    )


def test_sigterm_under_a_launcher_saves_a_checkpoint_of_all_ranks(values, tmp_path):
    path = tmp_path / "run.yaml"
    settings = {
        "output": str(tmp_path / "run"),
        "deepspeed": "zero2",
        "train__max_steps": 2000,
        "train__save_steps": 0,
    }
    path.write_text(yaml.safe_dump(changed(values, **settings, train__batch_size=1)))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={free_port()}",
    ]
    command += ["-m", "student_train", "train", str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.startswith("step 2/"):
            break
    process.send_signal(signal.SIGTERM)  # the launcher passes it on and decides the exit code
    _, said = process.communicate()
    assert "resume with: " in said
    checkpoint = last_checkpoint(tmp_path / "run")
    assert len(list(checkpoint.glob("global_step*/zero_pp_rank_*_optim_states.pt"))) == 2
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_an_image_on_one_rank_and_text_alone_on_the_other(tmp_path):
    # one step of four records, one with an image: its micro-batch meets one of text alone
    mixed = write_run(tmp_path / "data", records=4, text_only=3)
    sharded = launch(mixed, tmp_path / "sharded", deepspeed=SHARDED)
    plain = launch(mixed, tmp_path / "plain", ranks=1, deepspeed="none")
    torch.testing.assert_close(
        torch.tensor(losses(sharded)), torch.tensor(losses(plain)), atol=1e-6, rtol=2e-4
    )
