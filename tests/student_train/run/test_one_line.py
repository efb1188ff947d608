"""Faults of a run in one line: metrics, records without an image, killed workers, launchers."""

import shlex
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from shared.errors import UserError
from shared.recipe import make_recipe
from shared.records import Record, Turn
from student_train.run.callbacks import Interrupt
from student_train.run.evaluation import check_metric
from student_train.run.inputs import check_shown
from student_train.run.train import worker_fault

pytestmark = pytest.mark.unit


def test_a_metric_that_no_evaluation_has_is_refused_at_once():
    for metric in (None, "eval_loss", "loss", "eval_loss_vis", "loss_att"):
        check_metric(_with_metric(metric), scored=False)
    check_metric(_with_metric("closed_accuracy"), scored=True)
    for metric in ("eval_los", "closed_accuracy"):
        with pytest.raises(UserError, match=f"{metric} is no loss.*medalign student train"):
            check_metric(_with_metric(metric), scored=False)
    # A term that is off is in no evaluation.
    with pytest.raises(UserError, match=r"no loss of this run \(eval_loss, eval_loss_lm, eval_l"):
        check_metric(_with_metric("loss_att", beta=0.0), scored=False)
    with pytest.raises(UserError, match=r"no loss of this run \(eval_loss, eval_loss_lm\)"):
        check_metric(_with_metric("loss_vis", tune="projector"), scored=False)


def _with_metric(metric, beta=None, tune="lora"):
    train = {"best_metric": metric, "tune": tune, "eval_steps": 1}
    return make_recipe(
        {
            "output": "run",
            "data": {"validation": "v.json"},
            "losses": {"beta": beta},
            "train": train,
        }
    )


def test_a_projector_wants_an_image_in_every_record():
    turns = (Turn("human", "q"), Turn("gpt", "a"))
    shown, bare = Record("a", ("a.png",), turns), Record("b", (), turns)
    check_shown([shown], "train.json")
    with pytest.raises(UserError, match=r"train.json: 1 records show no image, first b;"):
        check_shown([shown, bare], "train.json")


def test_a_killed_worker_is_one_line():
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert "lower data.workers" in str(worker_fault(killed))
    assert worker_fault(RuntimeError("shapes differ")) is None


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, "student train r.yaml --resume"),
        (
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"},
            "torchrun --nproc-per-node 2 --no-python student -- train r.yaml --resume",
        ),
        (
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"},
            "torchrun --nnodes 2 --nproc-per-node 2 --no-python student -- train r.yaml --resume",
        ),
        (
            {"WORLD_SIZE": "2"},
            "deepspeed --num_gpus 2 --module student_train train r.yaml --resume",
        ),
    ],
)
def test_the_line_that_resumes_is_the_launchers(monkeypatch, given, line):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    program = "/x/student_train/__main__.py" if given else "/x/bin/student"
    monkeypatch.setattr(sys, "argv", [program, "train", "r.yaml", "--resume"])
    assert shlex.split(Interrupt().resume_command(cast("Any", None), Path("out"))) == shlex.split(
        line
    )
