"""Weight decay of both groups; the weights of the terms in a step and in an evaluation."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from shared.recipe import make_recipe
from student_train.run import evaluation
from student_train.run.arguments import training_arguments
from student_train.run.terms import Terms
from student_train.run.trainer import AlignmentTrainer

pytestmark = pytest.mark.unit


def trainer(recipe, folder):
    """A trainer without data: what its methods here read, and nothing else."""
    bare = AlignmentTrainer.__new__(AlignmentTrainer)
    bare.recipe, bare.optimizer = recipe, None
    bare.args = training_arguments(recipe, folder, True, None)
    layers = {"lora": nn.Linear(2, 2), "rotation": nn.Linear(2, 2)}
    bare.model = nn.ModuleDict({"inner": nn.ModuleDict(layers)})
    bare.state = SimpleNamespace(global_step=0, max_steps=10)
    return bare


def test_both_groups_carry_the_recipes_weight_decay(tmp_path):
    recipe = make_recipe(
        {
            "output": str(tmp_path),
            "rotation": {"learning_rate": 0.5},
            "train": {
                "weight_decay": 0.25,
                "learning_rate": 0.125,
                "report_to": [],
                "device": "cpu",
            },
        }
    )
    groups = AlignmentTrainer.create_optimizer(trainer(recipe, tmp_path)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.25, 0.25]
    assert [group["lr"] for group in groups] == [0.125, 0.5]


def test_an_evaluation_has_the_full_weights_whatever_the_schedule(tmp_path, monkeypatch):
    recipe = make_recipe(
        {
            "output": str(tmp_path),
            "losses": {"alpha": 0.5, "beta": 0.25, "alpha_schedule": "warmup"},
            "train": {"report_to": [], "device": "cpu"},
        }
    )
    bare = trainer(recipe, tmp_path)
    assert bare.loss_weights() == (1.0, 0.0, 0.25)
    sums, counts = torch.tensor([2.0, 4.0, 8.0]), torch.ones(3)
    monkeypatch.setattr(evaluation, "term_sums", lambda *_: Terms(sums, counts))
    shown = SimpleNamespace(
        args=SimpleNamespace(
            process_index=0, world_size=1, per_device_eval_batch_size=1, device="cpu"
        ),
        data_collator=lambda samples: samples[0],
        model=nn.Linear(1, 1),
        channel=None,
        to_device=lambda batch: batch,
        autocast_smart_context_manager=nullcontext,
        loss_weights=bare.loss_weights,
        full_weights=bare.full_weights,
    )
    found = evaluation.losses(cast("Any", shown), cast("Any", [{"ids": ["a"]}]), recipe)
    assert found["eval_loss"] == 2.0 + 0.5 * 4.0 + 0.25 * 8.0
