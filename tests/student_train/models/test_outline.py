"""What a model is, from its configuration: beside the loaded model, and in docs/models.md."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import UserError
from shared.recipe import ModelSection
from student_train.models import FAMILIES as NAMED
from student_train.models import LAYOUTS, listing, load_base
from student_train.models.outline import PUBLISHED, outline, outlined, published
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
from tests.fixtures.yi_checkpoint import YI, write_yi, yi_config
from tests.student_train.models.test_full_size import SMOLVLM

pytestmark = pytest.mark.unit
PAGE = Path(__file__).resolve().parents[3] / "docs" / "models.md"
WRITERS: dict[str, Callable[[Path], object]] = {
    "llava": llava_hf,
    "llava_mistral": llava_med_original,
    "llava_qwen2": huatuo_original,
    "llava_llama": write_yi,
    "smolvlm": smolvlm,
    "gemma3": gemma3_checkpoint.write_gemma3,
    "internvl": internvl_checkpoint.write_internvl,
    "qwen2_5_vl": qwen2_5_vl_checkpoint.write_qwen2_5_vl,
    "qwen3_vl": qwen3_vl_checkpoint.write_qwen3_vl,
}
# a copy of each: transformers' classes write into the mappings that they are given
FULL: dict[str, dict[str, Any]] = {
    name: json.loads(json.dumps(one))
    for name, one in {
        "llava-med-1.5": original_config(
            LLAVA_MED, "llava_mistral", "openai/clip-vit-large-patch14-336"
        ),
        "huatuogpt-vision-7b": original_config(
            HUATUO, "llava_qwen2", "openai/clip-vit-large-patch14-336"
        ),
        "huatuogpt-vision-34b": yi_config(YI, "openai/clip-vit-large-patch14-336"),
        "medgemma-1.5-4b": gemma3_checkpoint.FULL,
        "InternVL3-8B": internvl_checkpoint.FULL,
        "lingshu-7b": qwen2_5_vl_checkpoint.FULL,
        "Qwen3-VL-8B": qwen3_vl_checkpoint.FULL,
        "SmolVLM-256M": SMOLVLM,
    }.items()
}


@pytest.mark.parametrize("layout", WRITERS)
def test_the_outline_is_that_of_the_loaded_model(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path)
    found, base = outline(ModelSection(name=str(tmp_path))), load_base(str(tmp_path))
    decoder = base.model.get_decoder()
    assert found.layout == layout
    assert (found.image_size, found.grid) == (base.image_size, base.grid)
    assert (found.layers, found.width) == (len(decoder.layers), decoder.config.hidden_size)


def test_the_page_lists_layouts_and_sizes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for table in (listing.layouts(), listing.sizes()):
        assert table in page, "paste what python -m student_train.models.listing prints"
    for module in LAYOUTS.values():
        assert f"`{module}.py`" in page
    assert list(WRITERS) == list(LAYOUTS)
    # what no template of the layout's own name stands for
    assert "| `llava_llama` | `huatuogpt-vision-34b` | `huatuo_yi.py` | `huatuo_v1` |" in page
    assert "| `qwen3_vl` | a folder or hub id | `qwen3_vl.py` | `qwen3_vl` |" in page


@pytest.mark.parametrize("name", FULL)
def test_what_is_written_down_is_the_published_configuration(name: str, tmp_path: Path) -> None:
    """The package's copy beside the tests' own, whose keys are counted at full size."""
    assert published(name) == FULL[name]
    (tmp_path / "config.json").write_text(json.dumps(FULL[name]))
    one = outline(ModelSection(name=str(tmp_path)))
    assert one == outlined(published(name), PUBLISHED)


def test_every_named_model_is_written_down() -> None:
    assert set(FULL) == set(NAMED) | set(listing.OTHERS.values())


@pytest.mark.parametrize("name", NAMED)
def test_a_named_model_is_inspected_without_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = inspect_model(name)
    said = f"the hub does not give the configuration of {name}: as written down here"
    assert said in " ".join(capsys.readouterr().err.split())
    side = 16 if name.startswith("medgemma") else 24
    assert found["grid"] == f"{side}x{side}, {side**2} tokens an image"
    assert str(found["targets"]).endswith(f"--grid {side}x{side}")
    with pytest.raises(UserError, match="name a local copy"):
        outline(ModelSection(name="owner/other"))


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
