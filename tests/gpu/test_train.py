"""A training run on one card."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fixtures.student_runs import recipe, write_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
BF16 = {"train__device": "cuda", "train__precision": "bf16"}


def trained(values: dict[str, Any], **changes: Any) -> Path:
    from student_train.run.train import train

    return train(recipe(values, **changes))


def first_terms(output: Path) -> list[float]:
    rows = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [rows[0][name] for name in ("loss_lm", "loss_vis", "loss_att")]


@pytest.mark.parametrize("stage", ["none", "zero2", "zero3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_student_trains_on_the_gpu_and_loads_back(
    tmp_path: Path, stage: str, attention: str
) -> None:
    import student_train

    folder = trained(write_run(tmp_path), deepspeed=stage, model__attention=attention, **BF16)
    model, processor = student_train.load(folder)
    inputs = processor.encode("What is shown?", [tmp_path / "images" / "image0.png"]).items()
    logits = model.to("cuda")(**{name: tensor.to("cuda") for name, tensor in inputs}).logits
    assert torch.isfinite(logits).all()


def test_the_first_step_in_bfloat16_is_that_of_the_cpu_in_float32(tmp_path: Path) -> None:
    """W and LoRA's B are zero: the terms differ by the rounding of activations to 8 bits alone."""
    values = write_run(tmp_path)
    expected = trained(values, output=str(tmp_path / "cpu"), train__max_steps=1)
    found = trained(values, output=str(tmp_path / "gpu"), train__max_steps=1, **BF16)
    assert first_terms(found) == pytest.approx(first_terms(expected), rel=5e-2)


def test_the_flash_kernel_alone_is_enough(tmp_path: Path) -> None:
    """One sample a batch has no padding, so no mask keeps torch from its flash kernel."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        output = trained(write_run(tmp_path), train__batch_size=1, train__max_steps=2, **BF16)
    assert all(term > 0 for term in first_terms(output))


@pytest.mark.skipif(find_spec("flash_attn") is None, reason="the package flash-attn is absent")
def test_flash_attention_2_gives_sdpas_terms(tmp_path: Path) -> None:
    values = write_run(tmp_path)
    rows = []
    for attention in ("sdpa", "flash_attention_2"):
        changes = {"output": str(tmp_path / attention), "model__attention": attention} | BF16
        rows.append(first_terms(trained(values, train__max_steps=1, **changes)))
    assert rows[1] == pytest.approx(rows[0], rel=5e-2)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is absent")
def test_qlora_trains_and_loads_back(tmp_path: Path) -> None:
    import student_train

    output = trained(write_run(tmp_path), model__quantization="4bit", train__max_steps=2, **BF16)
    assert all(term > 0 for term in first_terms(output))
    student_train.load(output)


def test_the_teacher_leaves_no_byte_on_the_training_gpu(tmp_path: Path) -> None:
    values = write_run(tmp_path)
    peaks = []
    for name, losses in (("plain", {"losses__alpha": 0.0, "losses__beta": 0.0}), ("whole", {})):
        torch.cuda.reset_peak_memory_stats()
        trained(values, train__device="cuda", output=str(tmp_path / name), **losses)
        peaks.append(torch.cuda.max_memory_allocated())
    # W with its gradient and Adam's moments, and the losses' own activations: far from the
    # weights of a teacher.
    assert peaks[1] - peaks[0] < 20e6
