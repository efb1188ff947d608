"""A teacher's tower in transformers' CLIP format computes what the teacher computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from shared.errors import UserError
from student_train.models.original import openai_tower
from teacher_cache.cli import app
from teacher_cache.encoder import encode
from teacher_cache.teachers.clip_format import write_tower
from teacher_cache.teachers.registry import load_teacher
from tests.fixtures.teacher_checkpoints import (
    open_clip_visual,
    use_tiny_architectures,
    write_unimed,
)

pytestmark = pytest.mark.integration


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_architectures(monkeypatch)


def test_hidden_states_are_the_teachers(tiny: None, tmp_path: Path) -> None:
    from transformers import CLIPVisionModel

    weights = write_unimed(tmp_path / "unimed.pt", open_clip_visual())
    words = ["tower", "--teacher", "unimed-b", "--weights", str(weights)]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "tower")])
    assert done.exit_code == 0, done.output
    teacher = load_teacher("unimed-b", str(weights))
    tower: Any = CLIPVisionModel.from_pretrained(tmp_path / "tower").eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        hidden = tower(pixels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(hidden[:, 1:], encode(teacher, pixels).tokens, atol=1e-4, rtol=0)
    # what a recipe's model.vision_path reads
    assert len(openai_tower(str(tmp_path / "tower"))) == len(tower.state_dict())
    again = load_teacher(f"hf:{tmp_path / 'tower'}")
    assert again.preprocessing == teacher.preprocessing
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "tower")])
    assert "is not empty" in done.output + str(done.exception)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    teacher = load_teacher("dinov2-small")
    with pytest.raises(UserError, match="is no plain CLIP tower"):
        write_tower(teacher, tmp_path / "out")
    assert not (tmp_path / "out").exists()
