"""Two ranks under ZeRO of every family: the losses of one rank, and the model that was in training.

What a family hangs on its model (token types, places, DeepStack's features) has to hold where
parameters are gathered for a forward and let go behind it.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

import student_train
from student_train.run.train import train
from tests.fixtures.families import FAMILIES
from tests.fixtures.launch_training import QUESTIONS
from tests.fixtures.launched import SHARDED, launch, losses, tensors
from tests.fixtures.student_runs import changed, recipe, write_family_run

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module", params=list(FAMILIES))
def one(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """Values, and the run of one rank without DeepSpeed; an effective batch of 4."""
    folder = tmp_path_factory.mktemp(request.param)
    values = changed(
        write_family_run(FAMILIES[request.param], folder),
        lora__dropout=0.0,
        train__max_steps=2,
        train__save_steps=0,
    )
    settings = {"train__batch_size": 2, "train__accumulation": 2}
    return values, train(recipe(values, output=str(folder / "one"), **settings))


@pytest.mark.parametrize("stage", ["zero2", SHARDED])
def test_two_ranks_are_one(one: tuple[dict[str, Any], Path], stage: str, tmp_path: Path) -> None:
    values, alone = one
    run = launch(values, tmp_path / "two", deepspeed=stage)
    assert len(losses(alone)) == 2
    torch.testing.assert_close(
        torch.tensor(losses(run)), torch.tensor(losses(alone)), atol=1e-6, rtol=2e-4
    )
    found, expected = tensors(run), tensors(alone)
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    assert all(tensor.any() for tensor in found.values())
    model, processor = student_train.load(run)
    images = [[f"{values['data']['image_root']}/image{number}.png"] for number in (0, 1)]
    with torch.no_grad():
        logits = model(**processor.encode(QUESTIONS, images)).logits[:, -3:]
    during = torch.load(run / "logits.pt", weights_only=True)
    torch.testing.assert_close(logits, during, atol=1e-6, rtol=0)
