"""The device of a run."""

import pytest
import torch

from shared.errors import UserError
from shared.recipe.fields import ModelSection, Recipe, TrainSection
from shared.vocabulary import Device
from student_train.run.environment import use_cpu

pytestmark = pytest.mark.unit


def _on(device: Device) -> Recipe:
    return Recipe(model=ModelSection(name="m"), train=TrainSection(device=device))


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert use_cpu(_on("auto"))
    assert use_cpu(_on("cpu"))
    with pytest.raises(UserError, match=r"train\.device=cuda: no GPU .* use train\.device=cpu"):
        use_cpu(_on("cuda"))


def test_each_rank_needs_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not use_cpu(_on("auto"))
    assert use_cpu(_on("cpu"))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="one rank a GPU"):
        use_cpu(_on("auto"))
