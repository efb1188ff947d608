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


def test_patches_of_the_gpu_are_the_bytes_of_the_cpu() -> None:
    from shared.targets.numbers.on_device import quantise_on_device

    tokens = torch.randn(4, 576, 768, generator=torch.Generator().manual_seed(0))
    tokens[:, :, 3] *= 20
    expected, found = quantise_on_device(tokens), quantise_on_device(tokens.cuda())
    for here, there in zip(expected, found, strict=True):
        assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("encoding", ["matrix", "factors", "patches"])
def test_targets_are_encoded_where_the_teacher_ran(encoding: Any) -> None:
    """The same E_v, on both: similarities within one step of what is stored."""
    from shared.imaging.geometry import content_box
    from shared.targets.numbers.encodings import encode_targets
    from tests.fixtures.targets import identity

    more = {
        "matrix": {"grid": (6, 6)},
        "factors": {"grid": (6, 6), "precision": "u8", "tolerance": 0.05},
        "patches": {"grid": (6, 6), "width": 64, "rotation": "hadamard"},
    }
    kind = identity(encoding=encoding, **more[encoding])
    tokens = torch.randn(2, 36, 64, generator=torch.Generator().manual_seed(0))
    attention = torch.rand(2, 36, generator=torch.Generator().manual_seed(1))
    boxes = [content_box(100, height, "pad") for height in (100, 60)]
    expected = encode_targets(tokens, attention, boxes, (6, 6), kind)
    found = encode_targets(tokens.cuda(), attention.cuda(), boxes, (6, 6), kind)
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        if encoding == "matrix":  # float16 in [-1, 1]: a step is 2^-11, TF32 is off by default
            difference = one["similarity"].astype("f4") - other["similarity"].astype("f4")
            assert abs(difference).max() <= 2**-10
        elif encoding == "patches":
            assert one["patches"].tobytes() == other["patches"].tobytes()
        else:  # signs of singular vectors are free; the rank may step at the tolerance
            assert max(other["error"]) <= 0.05


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
