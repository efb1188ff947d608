"""E_v and E_a of one fused pass against evaluations that share no code with it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shared.imaging.grid import Grid
from shared.targets import Preprocessing
from shared.targets.numbers.similarity import cosine_similarity_triangle
from teacher_cache.encoder import encode
from teacher_cache.teachers.base import Teacher
from teacher_cache.teachers.registry import load_teacher
from tests.fixtures.eager_vit import open_clip_vit, timm_vit
from tests.fixtures.present import present
from tests.fixtures.teacher_checkpoints import (
    TINY_TIMM,
    biomedclip_state,
    open_clip_visual,
    spread,
    timm_trunk,
    use_tiny_architectures,
    write_unimed,
)

pytestmark = pytest.mark.integration
TOLERANCE: Any = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture
def tiny(monkeypatch):
    use_tiny_architectures(monkeypatch)


def pixels_for(teacher, batch=3):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(
        batch, 3, teacher.preprocessing.size, teacher.preprocessing.size, generator=generator
    )


def assert_parity(encoded, tokens, attention):
    torch.testing.assert_close(encoded.tokens.double(), tokens, **TOLERANCE)
    torch.testing.assert_close(encoded.attention.double(), attention, **TOLERANCE)
    assert (
        attention.std() > 0.2 * attention.mean()
    )  # the weights are such that a uniform row would show
    assert (
        encoded.attention.sum(1) < 1 + 1e-6
    ).all()  # raw: beside the share of CLS itself, nothing renormalised
    similarity = cosine_similarity_triangle(encoded.tokens).half().double()
    torch.testing.assert_close(similarity, cosine_similarity_triangle(tokens), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["unimed-b", "unimed-l"])
def test_unimed(tiny, tmp_path, name):
    visual = open_clip_visual()
    teacher = load_teacher(name, str(write_unimed(tmp_path / "model.pt", visual)))
    pixels = pixels_for(teacher)
    encoded = encode(teacher, pixels)
    assert encoded.tokens.shape == (3, 16, 64)
    assert_parity(encoded, *open_clip_vit(visual, pixels, heads=4))


class Operators(TorchDispatchMode):
    """Count the fused attentions that run; note the shape of all that a softmax returns."""

    def __init__(self):
        super().__init__()
        self.fused, self.softmaxes, self.unfused = 0, [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = str(func)
        self.fused += "scaled_dot_product" in name
        if "softmax" in name:
            self.softmaxes.append(tuple(out.shape))
        if "multi_head_attention" in name:
            self.unfused.append(name)
        return out


@pytest.mark.parametrize("name", ["unimed-b", "biomedclip"])
def test_every_block_runs_on_fused_attention_and_only_the_cls_row_is_formed(tiny, tmp_path, name):
    if name == "unimed-b":
        file, heads = write_unimed(tmp_path / "model.pt", open_clip_visual()), 4
    else:
        file, heads = tmp_path / "model.bin", 2
        torch.save(biomedclip_state(timm_trunk()), file)
    teacher = load_teacher(name, str(file))
    model: Any = teacher.model
    blocks = model.transformer.resblocks if name == "unimed-b" else model.blocks
    with Operators() as operators:
        encode(teacher, pixels_for(teacher))
    assert operators.fused == len(blocks) >= 3
    assert operators.softmaxes == [(3, heads, 1, teacher.grid.size + 1)]
    assert not operators.unfused
    assert torch.backends.mha.get_fastpath_enabled()


def test_biomedclip_and_its_projection(tiny, tmp_path):
    trunk = timm_trunk()
    state = biomedclip_state(trunk)
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    teacher = load_teacher("biomedclip", str(tmp_path))
    pixels = pixels_for(teacher)
    tokens, attention = timm_vit(trunk, pixels, heads=2)
    assert_parity(encode(teacher, pixels), tokens, attention)
    centred = tokens - tokens.mean(-1, keepdim=True)
    normed = centred / (tokens.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    normed = normed * trunk["norm.weight"] + trunk["norm.bias"]
    projected = encode(teacher, pixels, "projected")
    torch.testing.assert_close(
        projected.tokens.double(), normed @ state["visual.head.proj.weight"].double().T, **TOLERANCE
    )
    torch.testing.assert_close(projected.attention.double(), attention, **TOLERANCE)


def test_open_clip_projection_is_norm_then_matrix(tiny, tmp_path):
    visual = open_clip_visual()
    teacher = load_teacher("unimed-b", str(write_unimed(tmp_path / "model.pt", visual)))
    pixels = pixels_for(teacher)
    tokens, _ = open_clip_vit(visual, pixels, heads=4)
    normed = (tokens - tokens.mean(-1, keepdim=True)) / (
        tokens.var(-1, keepdim=True, unbiased=False) + 1e-5
    ).sqrt()
    expected = (normed * visual["ln_post.weight"] + visual["ln_post.bias"]) @ visual[
        "proj"
    ].double()
    torch.testing.assert_close(
        encode(teacher, pixels, "projected").tokens.double(), expected, **TOLERANCE
    )


VARIANTS: Any = {
    "plain": {},
    "LayerScale": {"init_values": 0.5},
    "registers": {"reg_tokens": 4},
    "norms of q and k": {"qk_norm": True},
    "no bias before": {"pre_norm": False, "global_pool": "avg"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_timms_vit(variant):
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=64, embed_dim=48, depth=3, num_heads=3, num_classes=0, **VARIANTS[variant]
    ).eval()
    model.load_state_dict(spread(model.state_dict()))
    preprocessing = Preprocessing(size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    teacher = Teacher("timm:x", "x", model, Grid(4, 4), preprocessing, "0" * 64, "")
    pixels = pixels_for(teacher)
    assert_parity(encode(teacher, pixels), *timm_vit(model.state_dict(), pixels, heads=3))


def test_one_image_alone_and_in_a_batch(tmp_path):
    torch.save(timm_trunk(), tmp_path / "model.pt")
    teacher = load_teacher(f"timm:{TINY_TIMM}", str(tmp_path / "model.pt"))
    pixels = pixels_for(teacher)
    together, alone = encode(teacher, pixels), encode(teacher, pixels[1:2])
    torch.testing.assert_close(together.tokens[1:2], alone.tokens, **TOLERANCE)
    torch.testing.assert_close(present(together.attention)[1:2], alone.attention, **TOLERANCE)
    assert not together.tokens.requires_grad
    assert not teacher.model._forward_hooks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precisions_come_near(tmp_path, dtype):
    trunk = timm_trunk()
    torch.save(trunk, tmp_path / "model.pt")
    teacher = load_teacher(f"timm:{TINY_TIMM}", str(tmp_path / "model.pt"))
    pixels = pixels_for(teacher)
    exact = encode(teacher, pixels)
    teacher.model.to(dtype)
    found = encode(teacher, pixels.to(dtype))
    assert found.tokens.dtype == dtype
    assert found.attention.dtype == torch.float32
    similarity = [cosine_similarity_triangle(one.tokens) for one in (found, exact)]
    assert (similarity[0] - similarity[1]).abs().max() < 0.1


def test_dinov2_small_is_the_packaged_onnx_model():
    """Against ONNX Runtime on the file itself.

    The last block's output and the weights of its attention.
    """
    import onnx
    import onnxruntime

    from teacher_cache.teachers.vit_s_focus import encoder_file

    model = onnx.load(str(encoder_file()))
    block = "/backbone/encoder/layer.11/Add_1_output_0"
    softmax = next(
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Softmax" and "layer.11/" in node.name
    )
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (block, softmax))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    teacher = load_teacher("dinov2-small", grid=Grid(16, 16))
    pixels = pixels_for(teacher, batch=1)
    tokens, weights = session.run([block, softmax], {session.get_inputs()[0].name: pixels.numpy()})
    encoded = encode(teacher, pixels)
    scale = np.abs(tokens).max()
    assert np.abs(encoded.tokens.numpy() - tokens[:, 1:]).max() <= 1e-4 * max(1, scale)
    assert np.abs(encoded.attention.numpy() - weights[:, :, 0, 1:].mean(1)).max() <= 1e-4
    expected = cosine_similarity_triangle(torch.from_numpy(tokens[:, 1:].astype(np.float64)))
    assert (
        cosine_similarity_triangle(encoded.tokens).half().double() - expected
    ).abs().max() <= 1e-3


@pytest.mark.parametrize(
    ("wanted", "native"), [((24, 24), (24, 24)), ((8, 8), (16, 16)), ((12, 12), (24, 24))]
)
def test_dinov2_small_runs_on_the_wanted_grid_or_twice_it(wanted, native):
    teacher = load_teacher("dinov2-small", grid=Grid(*wanted))
    assert teacher.grid == native
    assert teacher.preprocessing.size == 14 * native[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unimed-b", "biomedclip"])
def test_at_the_true_size_of_vit_b_16(tmp_path, name):
    """86 million weights, 224 pixels, 196 patches: the published shapes, random values."""
    if name == "unimed-b":
        state = open_clip_visual("ViT-B-16-quickgelu")
        file = write_unimed(tmp_path / "unimed_clip_vit_b16.pt", state, optimizer=False)
        eager: Any = open_clip_vit
    else:
        state = timm_trunk("vit_base_patch16_224")
        file = tmp_path / "open_clip_pytorch_model.bin"
        torch.save(biomedclip_state(state, 512), file)
        eager = timm_vit
    teacher = load_teacher(name, str(file))
    assert (teacher.grid, teacher.preprocessing.size) == ((14, 14), 224)
    pixels = pixels_for(teacher, batch=2)
    encoded = encode(teacher, pixels)
    assert encoded.tokens.shape == (2, 196, 768)
    tokens, attention = eager(state, pixels, heads=12)
    scale = tokens.abs().max().clamp(min=1)
    assert (encoded.tokens.double() - tokens).abs().max() <= 1e-4 * scale
    assert (encoded.attention.double() - attention).abs().max() <= 1e-4
