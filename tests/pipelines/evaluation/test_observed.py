"""The attention that is observed is what L_att reads."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from pipelines.evaluation.loading import load_student
from pipelines.evaluation.observed import observe
from shared.imaging.images import parse_reference
from tests.fixtures.runs import write_run

pytestmark = pytest.mark.integration
QUESTION = "Which organ is this?"


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), images=1)


@pytest.mark.parametrize("arm", ["lora", "medalign"])
def test_maps_equal_what_the_loss_observes(small_run: Path, arm: str) -> None:
    from student_train.attention import Request, observing

    image = parse_reference(str(small_run / "data" / "0.png"))
    student = load_student(small_run / arm, "cpu")
    found = observe(student, QUESTION, [image], [2]).attention[2]

    processor = student.processor
    inputs = processor.encode(QUESTION, [image])
    [columns] = (inputs["input_ids"] == processor.image_token_id).nonzero()[:, 1][None]
    rows = torch.arange(int(columns[-1]) + 1, inputs["input_ids"].shape[1])
    zero, count = torch.tensor([0]), torch.tensor([len(rows)])
    request = Request(zero, columns[None], zero, rows[None], count)
    channel = cast("Any", student.model).alignment
    assert channel is not None
    with torch.no_grad(), observing(channel, request) as observed:
        student.model(**inputs)
    assert np.allclose(found, observed.attention[2][0].numpy(), rtol=1e-5, atol=1e-8)
    assert 0 < found.sum() < 1
