"""`medsiglip` on a small checkpoint of its published layout, against transformers' eager model.

A `SiglipModel` of both towers with 32 x 32 patches at 448 pixels. E_a is the weights that its
pooling head's attention returns in its own pass: the probe's row, the mean over heads.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from typer.testing import CliRunner

from shared.imaging.grid import Grid
from shared.imaging.images import ImageReference
from shared.imaging.keys import content_key
from shared.targets import TargetStore
from teacher_cache.cli import app
from teacher_cache.encoder import encode
from teacher_cache.pooled import has_text_space, image_vectors
from teacher_cache.stream import prepare
from teacher_cache.teachers.registry import load_teacher
from tests.fixtures.images import image_folder
from tests.fixtures.present import present
from tests.fixtures.teacher_checkpoints import spread

pytestmark = pytest.mark.integration
PREPROCESSOR = {
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "size": {"height": 448, "width": 448},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The eager model, and its folder."""
    vision = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        image_size=448, patch_size=14,
    )  # fmt: skip
    text = transformers.SiglipTextConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        vocab_size=64, max_position_embeddings=64,
    )  # fmt: skip
    config = transformers.SiglipConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), attn_implementation="eager"
    )
    made = transformers.SiglipModel(config).eval()
    state = made.state_dict()
    kept = {name: tensor for name, tensor in state.items() if tensor.dtype == torch.long}
    made.load_state_dict({**spread(state), **kept})
    folder = tmp_path_factory.mktemp("medsiglip")
    made.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return made, folder


def seen_by(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """E_v and E_a as the eager model itself computes them."""
    seen: dict[str, Tensor] = {}
    hook = model.vision_model.head.attention.register_forward_hook(
        lambda module, args, output: seen.update(attention=output[1][:, 0])
    )
    with torch.no_grad():
        whole = model.vision_model(pixels, output_hidden_states=True)
    hook.remove()
    return whole.hidden_states[-1], seen["attention"]


def test_attention_is_the_probes_row_of_the_models_own_pass(model: tuple[Any, Path]) -> None:
    eager, folder = model
    teacher = load_teacher("medsiglip", str(folder))
    assert (teacher.grid, teacher.preprocessing.size) == (Grid(32, 32), 448)
    assert teacher.preprocessing.interpolation == "bilinear"
    pixels = torch.randn(2, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    tokens, attention = seen_by(eager, pixels)
    found = encode(teacher, pixels)
    looked = present(found.attention)
    torch.testing.assert_close(found.tokens, tokens, atol=1e-4, rtol=0)
    torch.testing.assert_close(looked, attention, atol=1e-7, rtol=1e-4)  # of weights near 1/1024
    torch.testing.assert_close(looked.sum(1), torch.ones(2))
    assert float(looked.std() / looked.mean()) > 0.05


def test_attention_is_the_formula_in_float64(model: tuple[Any, Path]) -> None:
    """Mean over heads of softmax(q_probe K^T / sqrt(c)), from the published tensors by name."""
    eager, folder = model
    pixels = torch.randn(1, 3, 448, 448, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        normed = eager.vision_model(pixels).last_hidden_state[0].double()
    head = {
        name.removeprefix("vision_model.head."): tensor.double()
        for name, tensor in eager.state_dict().items()
        if name.startswith("vision_model.head.")
    }
    weight, bias = head["attention.in_proj_weight"], head["attention.in_proj_bias"]
    q = (head["probe"][0, 0] @ weight[:32].T + bias[:32]).view(4, 8)
    k = (normed @ weight[32:64].T + bias[32:64]).view(-1, 4, 8)
    expected = (torch.einsum("hc,mhc->hm", q, k) / 8**0.5).softmax(-1).mean(0)
    found = present(encode(load_teacher("medsiglip", str(folder)), pixels).attention)
    torch.testing.assert_close(found[0].double(), expected, atol=1e-7, rtol=1e-4)


def test_an_image_s_vector_is_the_models_own_embedding(model: tuple[Any, Path]) -> None:
    eager, folder = model
    teacher = load_teacher("medsiglip", str(folder))
    assert has_text_space(teacher)
    pixels = torch.randn(2, 3, 448, 448, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        pooled = eager.vision_model(pixels).pooler_output
    expected = torch.nn.functional.normalize(pooled, dim=-1)
    torch.testing.assert_close(image_vectors(teacher, pixels), expected, atol=1e-5, rtol=0)


def test_a_built_store_holds_it(model: tuple[Any, Path], tmp_path: Path) -> None:
    eager, folder = model
    [path] = image_folder(tmp_path / "images", 1)
    words = ["build", "--teacher", "medsiglip", "--weights", str(folder), "--grid", "32x32"]
    words += ["--images", str(tmp_path / "images"), "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    store = TargetStore.open(tmp_path / "store", teacher="medsiglip")
    pixels, _ = prepare(ImageReference(path), store.identity.preprocessing, "pad")
    tokens, attention = seen_by(eager, pixels[None])
    target = store[content_key(path)]
    np.testing.assert_allclose(present(target.attention), attention[0].numpy(), rtol=1e-4)
    unit = torch.nn.functional.normalize(tokens[0].double(), dim=1).numpy()
    expected = (unit @ unit.T)[np.triu_indices(1024, 1)]
    np.testing.assert_allclose(target.similarity.astype(np.float64), expected, atol=1e-3)
