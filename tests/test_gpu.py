"""What only a GPU can show; `make test-gpu` runs these.

Docs/gpu.md says which of them have been run anywhere.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fixtures.student_runs import recipe, write_images, write_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-3), ("bf16", 5e-2), ("fp16", 1e-2)])
def test_targets_of_the_gpu_are_those_of_the_cpu(
    tmp_path: Path, dtype: Any, tolerance: float
) -> None:
    from shared.imaging.grid import Grid
    from shared.targets import TargetStore
    from teacher_cache.building import build
    from teacher_cache.settings import Settings
    from teacher_cache.sources import find_images

    write_images(tmp_path / "images", 4)
    images = find_images(str(tmp_path / "images"))
    build(
        "dinov2-small", images, tmp_path / "cpu", settings=Settings(grid=Grid(8, 8)), device="cpu"
    )
    build(
        "dinov2-small",
        images,
        tmp_path / "gpu",
        settings=Settings(grid=Grid(8, 8), dtype=dtype),
        device="cuda",
    )  # type: ignore[arg-type]
    expected, found = TargetStore.open(tmp_path / "cpu"), TargetStore.open(tmp_path / "gpu")
    for key in expected.keys():  # noqa: SIM118 - a store, not a mapping
        difference = abs(expected[key].similarity.astype("f4") - found[key].similarity.astype("f4"))
        assert difference.max() <= tolerance


@pytest.mark.parametrize("stage", ["none", "zero2", "zero3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_student_trains_on_the_gpu_and_loads_back(
    tmp_path: Path, stage: str, attention: str
) -> None:
    import student_train
    from student_train.run.train import train

    values = write_run(tmp_path)
    changes = {
        "deepspeed": stage,
        "model__attention": attention,
        "train__device": "cuda",
        "train__precision": "bf16",
    }
    folder = train(recipe(values, **changes))
    model, processor = student_train.load(folder)
    inputs = processor.encode("What is shown?", [tmp_path / "images" / "image0.png"]).items()
    logits = model.to("cuda")(**{name: tensor.to("cuda") for name, tensor in inputs}).logits
    assert torch.isfinite(logits).all()


def test_the_teacher_leaves_no_byte_on_the_training_gpu(tmp_path: Path) -> None:
    from student_train.run.train import train

    torch.cuda.reset_peak_memory_stats()
    values = write_run(tmp_path)
    train(
        recipe(
            values,
            train__device="cuda",
            losses__alpha=0.0,
            losses__beta=0.0,
            output=str(tmp_path / "plain"),
        )
    )
    plain = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    train(recipe(values, train__device="cuda"))
    # W with its gradient and Adam's moments, and the losses' own activations: far from the
    # teacher's 85 MB.
    assert torch.cuda.max_memory_allocated() - plain < 20e6
