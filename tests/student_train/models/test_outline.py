"""What a model is, from its configuration: beside the loaded model, and in docs/models.md."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import UserError
from shared.recipe import ModelSection
from student_train.models import load_base
from student_train.models.outline import outline
from student_train.run.inspect import inspect_model, is_model
from tests.fixtures import (
    gemma3_checkpoint,
    internvl_checkpoint,
    qwen2_5_vl_checkpoint,
    qwen3_vl_checkpoint,
)
from tests.fixtures.student_checkpoints import (
    HUATUO,
    LLAVA_MED,
    huatuo_original,
    llava_hf,
    llava_med_original,
    original_config,
    smolvlm,
)
from tests.fixtures.students import write_tiny_student

pytestmark = pytest.mark.unit
PAGE = Path(__file__).resolve().parents[3] / "docs" / "models.md"
WRITERS: dict[str, Callable[[Path], object]] = {
    "llava": llava_hf,
    "llava_mistral": llava_med_original,
    "llava_qwen2": huatuo_original,
    "smolvlm": smolvlm,
    "gemma3": gemma3_checkpoint.write_gemma3,
    "internvl": internvl_checkpoint.write_internvl,
    "qwen2_5_vl": qwen2_5_vl_checkpoint.write_qwen2_5_vl,
    "qwen3_vl": qwen3_vl_checkpoint.write_qwen3_vl,
}
FULL: dict[str, dict[str, Any]] = {
    "LLaVA-Med-1.5": original_config(LLAVA_MED, "llava_mistral", "clip-vit-large-patch14-336"),
    "HuatuoGPT-Vision-7B": original_config(HUATUO, "llava_qwen2", "clip-vit-large-patch14-336"),
    "MedGemma-1.5-4B": gemma3_checkpoint.FULL,
    "InternVL3-8B": internvl_checkpoint.FULL,
    "Lingshu-7B": qwen2_5_vl_checkpoint.FULL,
    "Qwen3-VL-8B": qwen3_vl_checkpoint.FULL,
}


@pytest.mark.parametrize("layout", WRITERS)
def test_the_outline_is_that_of_the_loaded_model(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path)
    found, base = outline(ModelSection(name=str(tmp_path))), load_base(str(tmp_path))
    decoder = base.model.get_decoder()
    assert found.layout == layout
    assert (found.image_size, found.grid) == (base.image_size, base.grid)
    assert (found.layers, found.width) == (len(decoder.layers), decoder.config.hidden_size)


def rows(head: str) -> list[list[str]]:
    text = PAGE.read_text(encoding="utf-8").split(head, 1)[1].split("\n\n", 1)[0]
    lines = text.strip().split("\n")[1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_lists_the_layouts_that_have_a_loader() -> None:
    listed = rows(
        "| `model_type` | `model.name` | loader in `student_train/models/` | template |\n"
    )
    assert [row[0].strip("`") for row in listed] == list(WRITERS)
    for row in listed:
        assert (PAGE.parents[1] / "student_train" / "models" / row[2].strip("`")).is_file()


def test_the_page_has_the_sizes_of_the_published_models(tmp_path: Path) -> None:
    written = []
    for name, config in FULL.items():
        (tmp_path / "config.json").write_text(json.dumps(config))
        one = outline(ModelSection(name=str(tmp_path)))
        sizes = (f"{one.image_size} px", one.grid, one.layers, one.width)
        written.append([name, *map(str, sizes)])
    assert rows("| model | image | grid | layers | width |\n") == written


def test_a_layout_without_a_loader_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip"}))
    with pytest.raises(UserError, match=r"no loader for model_type 'blip'; there are llava,"):
        inspect_model(str(tmp_path))


def test_an_adapter_is_no_model_for_inspect(tmp_path: Path) -> None:
    base = write_tiny_student(tmp_path / "base")
    assert is_model(str(base))
    assert is_model("owner/name")
    (base / "adapter_config.json").write_text("{}")
    assert not is_model(str(base))
    assert not is_model(str(tmp_path / "nowhere"))
    assert re.search(r"--grid 4x4$", str(inspect_model(str(base))["targets"]))
