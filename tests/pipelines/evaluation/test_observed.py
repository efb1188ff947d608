"""Attention maps are what L_att reads, layer by layer."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from pipelines.decoding.prompts import plain_model
from pipelines.evaluation.observed import attention_maps
from shared.imaging.images import parse_reference
from tests.fixtures.runs import write_run

pytestmark = pytest.mark.integration
QUESTION = "Which organ is this?"


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), images=1)


@pytest.mark.parametrize("arm", ["lora", "medalign"])
def test_maps_equal_what_the_loss_observes(small_run: Path, arm: str) -> None:
    import student_train
    from student_train.attention import Request, observing

    image = parse_reference(str(small_run / "data" / "0.png"))
    [found] = attention_maps(small_run / arm, [QUESTION], [image], 2)

    adapted, processor = student_train.load(small_run / arm)
    inputs = processor.encode(QUESTION, [image])
    [columns] = (inputs["input_ids"] == processor.image_token_id).nonzero()[:, 1][None]
    rows = torch.arange(int(columns[-1]) + 1, inputs["input_ids"].shape[1])
    zero, count = torch.tensor([0]), torch.tensor([len(rows)])
    request = Request(zero, columns[None], zero, rows[None], count)
    channel = cast("Any", plain_model(adapted)).alignment
    assert channel is not None
    with torch.no_grad(), observing(channel, request) as observed:
        adapted(**inputs)
    assert np.allclose(found, observed.attention[2][0].numpy(), rtol=1e-5, atol=1e-8)
    assert 0 < found.sum() < 1


def test_an_adapter_is_observed_at_a_layer_it_was_trained_with(small_run: Path) -> None:
    image = parse_reference(str(small_run / "data" / "0.png"))
    own, other = (
        attention_maps(small_run / "medalign", [QUESTION], [image], layer) for layer in (2, 1)
    )
    assert np.array_equal(own, other)
