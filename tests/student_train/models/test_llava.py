"""Folders in transformers' own format: what fits loads, what does not is named."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from shared.errors import UserError
from shared.imaging.squares import image_reader
from shared.recipe import ModelSection
from student_train.models import load_base
from student_train.models.saving import save_base
from tests.fixtures.student_checkpoints import llava_hf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llava") / "model"
    llava_hf(path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    content = {key: value for key, value in (content | changes).items() if value != "remove"}
    path.write_text(json.dumps(content))


@pytest.mark.integration
def test_loads_with_its_template_and_saves_again(folder: Path, tmp_path: Path) -> None:
    base = load_base(str(folder))
    assert (base.template.name, base.image_size, base.image_tokens) == ("chatml", 56, 16)
    assert not base.model.training
    assert base.model.dtype == torch.float32
    # Answers end at the template's end token, not at the checkpoint's own.
    assert cast(
        "Any", base.model
    ).generation_config.eos_token_id == base.tokenizer.convert_tokens_to_ids("<|im_end|>")
    save_base(base, tmp_path / "saved")
    again = load_base(str(tmp_path / "saved"), torch.bfloat16)
    assert again.model.dtype == torch.bfloat16
    assert again.template == base.template
    assert load_base(ModelSection(name=str(folder), template="huatuo")).template.name == "huatuo"


@pytest.mark.integration
def test_small_images_give_a_small_grid(tmp_path: Path) -> None:
    llava_hf(tmp_path / "a", image=28)
    base = load_base(str(tmp_path / "a"))
    assert tuple(base.grid) == (2, 2)
    assert base.image_size == 28


@pytest.mark.integration
def test_template_is_never_guessed(copy: Path) -> None:
    edit(copy / "config.json", prompt_template="remove")
    with pytest.raises(UserError, match=r"set model\.template"):
        load_base(str(copy))


@pytest.mark.integration
def test_tokenizer_without_the_image_token(copy: Path) -> None:
    edit(copy / "config.json", image_token_index=5)
    with pytest.raises(
        UserError,
        match=r"the tokenizer lacks the image token: .* id 5, but there it is the ordinary token",
    ):
        load_base(str(copy))
    edit(copy / "config.json", image_token_index=600)
    with pytest.raises(UserError, match="id 600, but it ends at 568"):
        load_base(str(copy))


@pytest.mark.integration
def test_grid_that_contradicts_the_config(copy: Path) -> None:
    edit(copy / "config.json", image_seq_length=576)
    with pytest.raises(UserError, match=r"56 pixels give 4x4 patches.*image_seq_length=576"):
        load_base(str(copy))


@pytest.mark.integration
def test_lost_and_foreign_weights(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    lost = {key: value for key, value in weights.items() if not key.endswith("linear_1.weight")}
    save_file(lost, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, first .*linear_1\.weight"):
        load_base(str(copy))
    save_file(
        weights | {"model.extra.weight": torch.ones(1)},
        copy / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(UserError, match=r"1 weights are unexpected, first model\.extra\.weight"):
        load_base(str(copy))


@pytest.mark.integration
def test_truncated_and_missing_weights(copy: Path) -> None:
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(
        UserError, match=rf"not whole: it has {len(content) - 100} of {len(content)} bytes"
    ):
        load_base(str(copy))
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        load_base(str(copy))


@pytest.mark.integration
@pytest.mark.parametrize("part", ["tokenizer", "image processor"])
def test_missing_parts(part: str, copy: Path) -> None:
    for pattern in ("tokenizer*", "vocab*", "merges*") if part == "tokenizer" else ("*processor*",):
        for file in copy.glob(pattern):
            file.unlink()
    with pytest.raises(UserError, match=f"holds no usable {part}"):
        load_base(str(copy))


@pytest.mark.integration
def test_code_in_a_checkpoint_is_not_run(copy: Path) -> None:
    (copy / "evil.py").write_text("raise SystemExit('ran')\n")
    edit(copy / "config.json", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    edit(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    load_base(str(copy))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("section", "line"),
    [
        (ModelSection(name="/nowhere/model"), "no model folder at /nowhere/model"),
        (
            ModelSection(name="llava-med"),
            r"model\.name=llava-med is no named model, folder or hub id; "
            r"did you mean llava-med-1\.5",
        ),
        (ModelSection(name="tinyllama"), r"named models are llava-med-1\.5, huatuogpt-vision-7b"),
        (
            ModelSection(name="somebody/something"),
            r"cannot fetch somebody/something from the hub .*model\.path",
        ),
        (ModelSection(name="llava-med-1.5"), r"cannot fetch microsoft/llava-med-v1\.5-mistral-7b"),
        (
            ModelSection(name="some", path="/x"),
            r"model\.path goes with a named model \(llava-med-1\.5",
        ),
    ],
)
def test_places_that_hold_no_model(section: ModelSection, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        load_base(section)
    assert "\n" not in str(caught.value)


@pytest.mark.integration
def test_hub_id_from_the_hub_librarys_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests are offline.

    A snapshot that was fetched before is found by the model's id, and pinned by commit.
    """
    import huggingface_hub.constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--somebody--small-llava"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    base = load_base("somebody/small-llava")
    assert (
        cast("Any", base.model).name_or_path == "somebody/small-llava"
    )  # what an adapter names as its base: no path of this machine
    assert (
        load_base(ModelSection(name="somebody/small-llava", revision=commit)).template
        == base.template
    )
    with pytest.raises(UserError, match="cannot fetch somebody/small-llava"):
        load_base(ModelSection(name="somebody/small-llava", revision="f" * 40))
    with pytest.raises(UserError, match=r"model\.revision=main is for hub ids"):
        load_base(ModelSection(name=str(folder), revision="main"))


@pytest.mark.integration
def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config\.json"):
        load_base(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_base(str(tmp_path))


@pytest.mark.integration
@pytest.mark.skipif(torch.cuda.is_available(), reason="here a GPU may run it")
def test_four_bits_need_a_gpu(folder: Path) -> None:
    with pytest.raises(UserError, match="needs a CUDA GPU and `pip install bitsandbytes`"):
        load_base(ModelSection(name=str(folder), quantization="4bit"))


@pytest.mark.integration
def test_flash_attention_where_it_is_not_installed(folder: Path) -> None:
    import importlib.util

    if importlib.util.find_spec("flash_attn") is not None:
        pytest.skip("flash_attn is installed")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_base(ModelSection(name=str(folder), attention="flash_attention_2"))


@pytest.mark.unit
@pytest.mark.parametrize(("width", "height"), [(90, 56), (41, 77), (56, 56), (200, 199)])
def test_pixels_equal_llavas_preprocessing(width: int, height: int) -> None:
    """LLaVA.

    Paste on a square of the mean colour, then transformers' CLIP processor (resize, crop,
    normalise).
    """
    from transformers import CLIPImageProcessorPil

    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    side = max(width, height)
    padded = Image.new("RGB", (side, side), (122, 116, 104))
    padded.paste(image, ((side - width) // 2, (side - height) // 2))
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
    )
    expected = torch.as_tensor(np.asarray(processor(padded)["pixel_values"][0]))
    got = image_reader(processor, 56).pixels(image)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert got.dtype == torch.float32
