"""Ranks under `torchrun` with NCCL: two where there are two cards, one otherwise."""

from pathlib import Path

import pytest
import torch

from tests.fixtures.launched import SHARDED, launch, losses
from tests.fixtures.student_runs import write_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
STAGES = ["zero0", "zero1", "zero2", "zero3", SHARDED]
SAVERS = ["zero2-offload", "zero3-offload", "zero3-quantized"]


@pytest.mark.parametrize("stage", STAGES + SAVERS)
def test_every_stage_trains_as_one_process_without_it(tmp_path: Path, stage: str) -> None:
    """Float32, but for what zero3-quantized keeps in 8 bits."""
    values = write_run(tmp_path)
    ranks = min(2, torch.cuda.device_count())
    changes = {"train__device": "cuda", "train__max_steps": 2}
    plain = launch(values, tmp_path / "plain", ranks=1, deepspeed="none", **changes)
    found = launch(values, tmp_path / "ranks", ranks=ranks, deepspeed=stage, **changes)
    tolerance = 0.1 if stage == "zero3-quantized" else 1e-3
    for one, other in zip(losses(found), losses(plain), strict=True):
        assert one == pytest.approx(other, rel=tolerance)
