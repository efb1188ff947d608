"""The demo student's parts equal their sources.

The ViT ONNX Runtime's, the language model the GGUF file's.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.demo import projector, student
from shared.errors import UserError
from shared.packages import packaged_file
from teacher_cache.teachers import vit_s_focus
from tests.fixtures.students import byte_tokenizer


def vision_tower(layers: int) -> Any:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=vit_s_focus.WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=vit_s_focus.HEADS,
        image_size=vit_s_focus.POSITIONS * vit_s_focus.PATCH,
        patch_size=vit_s_focus.PATCH,
        use_mask_token=False,
    )
    model = Dinov2Model(config).eval()
    state = {
        student._vision_name(k): torch.from_numpy(v) for k, v in student._tower(layers).items()
    }
    model.load_state_dict(state, strict=True)
    return model


@pytest.mark.integration
@pytest.mark.parametrize("layers", [student.VISION_LAYERS, vit_s_focus.LAYERS])
def test_vision_features_equal_those_of_onnx_runtime(layers: int, tmp_path: Path) -> None:
    """The hidden state after `layers` blocks, before any further norm.

    It is the input of the next block's first norm.
    """
    import onnx
    import onnxruntime

    model = onnx.load(str(vit_s_focus.encoder_file()))
    norm = (
        "backbone.layernorm.weight"
        if layers == vit_s_focus.LAYERS
        else f"backbone.encoder.layer.{layers}.norm1.weight"
    )
    # The export spells a norm out: ((x - mean) / deviation) * weight + bias.
    producer = {node.output[0]: node for node in model.graph.node}
    [scaled] = [node for node in model.graph.node if norm in node.input]
    divided = producer[next(name for name in scaled.input if name != norm)]
    inner = producer[divided.input[0]].input[0]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(inner, onnx.TensorProto.FLOAT, None)
    )
    onnx.save(model, str(tmp_path / "opened.onnx"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        tmp_path / "opened.onnx", options, providers=["CPUExecutionProvider"]
    )
    pixels = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    [expected] = session.run([inner], {"input_image": pixels})
    with torch.no_grad():
        found = vision_tower(layers)(
            torch.from_numpy(pixels), output_hidden_states=True
        ).hidden_states[layers]
    assert np.abs(found.numpy() - expected).max() < 1e-3 * np.abs(expected).max()
    assert np.abs(found.numpy() - expected).mean() < 1e-5


@pytest.mark.integration
@pytest.mark.parametrize("grid", [4, projector.GRID])
def test_the_assembled_student_says_how_many_tokens_an_image_has(grid: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    model: Any = student.assemble(LlamaForCausalLM(config), tokenizer, layers=1, grid=grid)
    side = grid * vit_s_focus.PATCH
    with torch.no_grad():
        [tokens] = model.model.get_image_features(torch.zeros(1, 3, side, side)).pooler_output
    assert tokens.shape == (model.config.image_seq_length, 16)


@pytest.mark.unit
def test_a_missing_package_and_another_file_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"no-such-package.*requirements-weights"):
        packaged_file("no_such_package", "weights.onnx", "0" * 64)
    (tmp_path / "fake_weights").mkdir()
    (tmp_path / "fake_weights" / "w.onnx").write_bytes(b"other")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="sha256"):
        packaged_file("fake_weights", "w.onnx", "0" * 64)


@pytest.mark.unit
def test_another_onnx_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_bytes(b"this is no protobuf")
    with pytest.raises(UserError, match=r"text\.onnx"):
        vit_s_focus.read_tensors(tmp_path / "text.onnx")


@pytest.mark.unit
def test_ridge_is_the_penalised_least_squares_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 7, generator=generator) + 3
    targets = (
        features @ torch.randn(7, 4, generator=generator)
        + 5
        + 0.1 * torch.randn(200, 4, generator=generator)
    )
    weight, bias = projector.ridge(features, targets)
    # The same problem as ordinary least squares over centred data with sqrt(penalty) rows added.
    x, y = (
        features.double() - features.double().mean(0),
        targets.double() - targets.double().mean(0),
    )
    penalty = projector.RIDGE * float((x**2).sum(0).mean())
    stacked = torch.cat([x, penalty**0.5 * torch.eye(7, dtype=torch.float64)])
    expected = torch.linalg.lstsq(
        stacked, torch.cat([y, torch.zeros(7, 4, dtype=torch.float64)])
    ).solution
    assert torch.allclose(weight.double(), expected.T, atol=1e-5)
    assert torch.allclose(features.mean(0) @ weight.T + bias, targets.mean(0), atol=1e-4)
    assert projector.explained_variance(features @ weight.T + bias, targets) > 0.99


@pytest.mark.unit
def test_patch_shares_tell_what_fills_a_patch(tmp_path: Path) -> None:
    """A mask that is twice as high as wide: the outer quarters of the square are padding."""
    grid, patch = projector.GRID, vit_s_focus.PATCH
    mask = np.zeros((grid * patch, grid * patch // 2), dtype=np.uint8)
    mask[: grid * patch // 2] = 5
    mask[grid * patch // 2 :, : grid * patch // 4 + patch // 2] = (
        9  # half a patch more than a quarter of the square
    )
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = projector.patch_shares(tmp_path / "mask.png", [5, 7, 9]).reshape(grid, grid, 3)
    half, quarter = grid // 2, grid // 4
    assert torch.all(found[:half, quarter : 3 * quarter] == torch.tensor([1.0, 0, 0]))
    assert torch.all(found[half:, quarter:half] == torch.tensor([0, 0, 1.0]))
    assert torch.allclose(found[half:, half], torch.tensor([0, 0, 0.5]), atol=0.01)
    assert torch.all(found[half:, half + 1 :] == 0)
    assert torch.all(found[:, :quarter] == 0)


@pytest.mark.unit
def test_a_word_that_names_share_counts_less() -> None:
    """Two names of two words, one of them common: its weight is a half of the other's."""

    def tokenizer(name: str, add_special_tokens: bool) -> Any:
        return SimpleNamespace(
            input_ids=[{"angular": 0, "lingual": 1, "gyrus": 2}[word] for word in name.split()]
        )

    embed = torch.eye(3)
    found = projector.name_embeddings(["angular gyrus", "lingual gyrus"], tokenizer, embed)
    expected = torch.tensor([[2.0, 0, 1], [0, 2, 1]]) / 5**0.5
    assert torch.allclose(found, expected)


@pytest.mark.unit
def test_a_folder_that_is_no_atlas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="brain-atlas"):
        student.build_student(tmp_path, tmp_path / "out")


@pytest.fixture(scope="module")
def language() -> tuple[Any, Any]:
    return student.language_model()


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_the_language_model_equals_the_gguf_file(language: tuple[Any, Any]) -> None:
    """Inside the assembled student, text alone gives the language model's logits.

    Those of the model that transformers reads from the GGUF.
    """
    from transformers import AutoModelForCausalLM

    model, tokenizer = language
    package, file, digest = student.LANGUAGE_MODEL
    path = packaged_file(package, file, digest)
    original = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    whole = student.assemble(model, tokenizer)
    ids = tokenizer("The hippocampus lies in the", return_tensors="pt").input_ids
    with torch.no_grad():
        expected, found = original(ids).logits, whole(input_ids=ids).logits
    words = expected.shape[-1]
    assert found.shape[-1] == words + 1  # <image>
    assert torch.allclose(found[..., :words], expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_the_student_starts_near_the_names(tmp_path: Path) -> None:
    """Built from a set, saved and loaded back.

    Tokens of held-out slices match the names of what the slice shows.
    """
    import json

    from pipelines.datasets.brain_atlas.writing import prepare_brain_atlas
    from shared.imaging.images import ImageReference
    from student_train.models import load_base

    prepare_brain_atlas(tmp_path / "atlas")
    fit = student.build_student(tmp_path / "atlas", tmp_path / "student")
    assert 0.4 < fit.explained_test < fit.explained_train < 1
    base = load_base(str(tmp_path / "student"))
    assert (base.grid.rows, base.grid.columns, base.template.name) == (
        projector.GRID,
        projector.GRID,
        "chatml",
    )
    names = {
        int(number): name
        for number, name in json.loads((tmp_path / "atlas" / "structures.json").read_text()).items()
    }
    embed = cast("Any", base.model).get_input_embeddings().weight.detach()
    vectors = projector.name_embeddings(list(names.values()), base.tokenizer, embed)
    from shared.imaging.squares import image_reader

    read = image_reader(base.image_processor, base.image_size)
    matches, visible = [], []
    for name in sorted(
        {record["slice"] for record in json.loads((tmp_path / "atlas" / "test.json").read_text())}
    ):
        pixels = read(ImageReference(tmp_path / "atlas" / "images" / f"{name}.png", None))
        with torch.no_grad():
            tokens = base.model.model.get_image_features(pixel_values=pixels[None]).pooler_output[0]
        matches.append((tokens @ (vectors - vectors.mean(0)).T).amax(0))
        visible.append(projector.shows(tmp_path / "atlas" / "masks" / f"{name}.png", list(names)))
    match, shown = torch.stack(matches), torch.stack(visible).bool()
    # Share of all pairs of one shown and one not shown (of the same structure) that the better
    # match orders rightly.
    ordered = [
        (match[shown[:, k], k][:, None] > match[~shown[:, k], k][None]).float().flatten()
        for k in range(len(names))
    ]
    assert torch.cat(ordered).mean() > 0.75  # chance: 0.5
