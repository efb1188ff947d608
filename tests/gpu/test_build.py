"""Stage one on a card: its targets are those of the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fixtures.student_runs import write_images
from tests.fixtures.teacher_checkpoints import open_clip_visual

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

    teacher, weights = "open_clip:ViT-B-32-quickgelu", tmp_path / "teacher.pt"
    torch.save(open_clip_visual("ViT-B-32-quickgelu"), weights)
    write_images(tmp_path / "images", 4)
    images = find_images(str(tmp_path / "images"))
    for place, device, settings in (
        ("cpu", "cpu", Settings(grid=Grid(8, 8))),
        ("gpu", "cuda", Settings(grid=Grid(8, 8), dtype=dtype)),
    ):
        store = tmp_path / place
        build(teacher, images, store, weights=str(weights), settings=settings, device=device)
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

    more: dict[str, dict[str, Any]] = {
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
