"""A run resumed in any epoch on one or two ranks equals the undisturbed one, bit for bit."""

import pytest
import torch

from tests.fixtures.launched import cut, launch, losses, tensors
from tests.fixtures.student_runs import changed, write_run

pytestmark = pytest.mark.integration
STEPS_OF_AN_EPOCH = 3  # 11 records in steps of 4


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    values = write_run(tmp_path_factory.mktemp("epochs"), records=11, text_only=2)
    return changed(
        values,
        train__epochs=4.0,
        train__save_steps=1,
        train__keep_checkpoints=20,
        lora__dropout=0.2,
    )


def resumed_is_undisturbed(values, folder, ranks, stage, steps, epochs):
    """Cut a run after each of `steps`, go on, and compare losses and weights."""
    settings = {"ranks": ranks, "deepspeed": stage, "train__epochs": epochs}
    whole = launch(values, folder / "whole", **settings)
    assert len(losses(whole)) == epochs * STEPS_OF_AN_EPOCH
    expected = tensors(whole)
    for step in steps:
        part = cut(whole, folder / f"cut{step}", step)
        launch(values, part, resume=True, **settings)
        assert losses(part) == losses(whole), step
        found = tensors(part)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), step


def test_two_ranks_inside_the_second_epoch(values, tmp_path):
    resumed_is_undisturbed(values, tmp_path, 2, "none", [4], 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["none", "zero2", "zero3"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_epoch(values, tmp_path, ranks, stage):
    # inside the first, the second and the third epoch, and where the second begins
    resumed_is_undisturbed(values, tmp_path, ranks, stage, [2, 3, 5, 8], 4.0)
