"""A student of one line: `student tiny` writes a LLaVA folder that transformers and we read."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration
from typer.testing import CliRunner

from shared.errors import UserError
from shared.imaging.grid import Grid
from shared.recipe import make_recipe
from student_train.cli import app
from student_train.models import load_base
from student_train.models.tiny import write_tiny_student

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "student"
    result = CliRunner().invoke(app, ["tiny", "--grid", "6x6", "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def test_a_recipe_takes_it_and_it_sees_the_grid(folder: Path) -> None:
    recipe = make_recipe({"output": "unused", "model": {"name": str(folder)}})
    base = load_base(recipe.model)
    assert base.grid == Grid(6, 6)
    assert base.template.name == "vicuna_v1"


def test_transformers_alone_answers_with_it(folder: Path) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": "Is this a lung?"}]
    asked = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(images=Image.new("RGB", (40, 30), "gray"), text=asked, return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 36
    with torch.inference_mode():
        logits = model(**inputs).logits
    assert torch.isfinite(logits).all()


def test_the_same_seed_gives_the_same_weights(folder: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    write_tiny_student(tmp_path / "same", Grid(6, 6))
    write_tiny_student(tmp_path / "other", Grid(6, 6), seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [
        (one / "model.safetensors").read_bytes()
        for one in (folder, tmp_path / "same", tmp_path / "other")
    ]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    ("grid", "sizes", "said"),
    [
        (Grid(6, 4), {}, "--grid 12x12"),
        (Grid(6, 6), {"width": 60}, "multiple of 8"),
        (Grid(6, 6), {"layers": 0}, "at least 1"),
    ],
)
def test_what_it_refuses(grid: Grid, sizes: dict[str, int], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        write_tiny_student(tmp_path / "new", grid, **sizes)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_holds_something_is_left_alone(folder: Path) -> None:
    with pytest.raises(UserError, match="choose another --out"):
        write_tiny_student(folder, Grid(6, 6))
