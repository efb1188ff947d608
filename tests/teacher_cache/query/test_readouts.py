"""Every read-out against published code and autograd, in float64, before rank and int8."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from shared.errors import UserError
from shared.targets.identity import QueryIdentity
from shared.targets.numbers.on_device import quantise_query
from shared.targets.numbers.query import query_maps
from teacher_cache.encoder import encode
from teacher_cache.query.readouts import with_readout
from teacher_cache.teachers.biomedclip import load_biomedclip
from teacher_cache.teachers.registry import TEACHERS, load_teacher
from tests.fixtures import asked_vit
from tests.fixtures.teacher_checkpoints import (
    biomedclip_state,
    timm_trunk,
    use_tiny_architectures,
)

pytestmark = pytest.mark.integration
FLOAT64 = 1e-10  # sums of some thousand float64 products; the issue asks for 1e-6
METHODS = ("grad-eclip", "maskclip", "clearclip", "sclip", "textspan")


def query(method, rank, grid, heads="published", layers=4):
    return QueryIdentity(
        method=method,
        heads=heads if method == "grad-eclip" else None,
        layers=layers if method == "textspan" else None,
        rank=rank,
        terms=1,
        text="cd" * 32,
        grid=grid,
    )


def read(teacher, method, pixels, width, **more):
    """Return R (B, M, c) of each image: the basis is the whole text space."""
    whole = np.eye(width)
    ready = with_readout(teacher, query(method, width, teacher.grid, **more), whole)
    assert ready.readout is not None
    entering, done = [], []
    # As `encode` calls it, but in float64.
    blocks = (
        teacher.model.blocks
        if hasattr(teacher.model, "blocks")
        else teacher.model.transformer.resblocks
    )
    first = hasattr(teacher.model, "blocks")

    def turned(x):
        return x if first else x.transpose(0, 1)

    hooks = [
        block.register_forward_pre_hook(
            lambda m, a, k: entering.append(turned(a[0] if a else k["q_x"])), with_kwargs=True
        )
        for block in blocks[-ready.readout.depth :]
    ]
    hooks.append(blocks[-1].register_forward_hook(lambda m, a, out: done.append(turned(out))))
    with torch.inference_mode():
        teacher.model(pixels)
        found = ready.readout(entering, done[0])
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("method", METHODS)
def test_open_clip_is_the_published_code(method):
    texts, model = asked_vit.texts(), asked_vit.visual()
    found = read(asked_vit.teacher(model), method, asked_vit.pixels(), asked_vit.OUT)
    maps = found @ texts.T
    if method == "grad-eclip":
        maps, method = maps.relu(), "grad-eclip, published"
    expected = asked_vit.published_maps()[method]
    torch.testing.assert_close(maps.transpose(1, 2), expected, atol=FLOAT64, rtol=0)


def gradient_maps(teacher, pixels, texts, heads):
    """Grad-ECLIP by autograd, one pass a question; no code is shared with the read-out."""
    model, maps = teacher.model, []
    timm = hasattr(model, "blocks")
    caught = []
    block = model.blocks[-1] if timm else model.transformer.resblocks[-1]
    hook = block.register_forward_pre_hook(
        lambda m, a, k: caught.append(a[0] if a else k["q_x"]), with_kwargs=True
    )
    with torch.no_grad():
        model(pixels)
    hook.remove()
    x = caught[0] if timm else caught[0].transpose(0, 1)
    if timm:
        attention, normed = block.attn, block.norm1(x)
        w, b, out, count = (
            attention.qkv.weight,
            attention.qkv.bias,
            attention.proj,
            attention.num_heads,
        )
    else:
        attention, normed = block.attn, block.ln_1(x)
        w, b, out = attention.in_proj_weight, attention.in_proj_bias, attention.out_proj
        count = attention.num_heads
    q, k, v = (normed @ w.T + b).chunk(3, dim=-1)
    number = 1 if heads == "published" else count
    q_, k_, v_ = (one.unflatten(-1, (number, -1)).transpose(1, 2) for one in (q, k, v))
    a = (q_ @ k_.transpose(2, 3) / q_.shape[-1] ** 0.5).softmax(-1)
    o = (a @ v_).transpose(1, 2).flatten(2).requires_grad_()
    y = x + out(o)
    y = y + block.mlp(block.norm2(y) if timm else block.ln_2(y))
    image = normalize(teacher.project(y)[:, 0], dim=-1)
    bias = out.bias if heads == "published" else 0
    query_, keys = q[:, :1] @ out.weight.T + bias, k[:, 1:] @ out.weight.T + bias
    cosine = (normalize(query_, dim=-1) * normalize(keys, dim=-1)).sum(-1)
    low, high = cosine.amin(1, keepdim=True), cosine.amax(1, keepdim=True)
    weights = (cosine - low) / (high - low)
    for text in texts:
        (grad,) = torch.autograd.grad((image @ text).sum(), o, retain_graph=True)
        maps.append((weights * (v[:, 1:] * grad[:, :1]).sum(-1)).relu())
    return torch.stack(maps, 1)


@pytest.mark.parametrize("heads", ["published", "model"])
@pytest.mark.parametrize("kind", ["open_clip", "biomedclip"])
def test_grad_eclip_is_autograd(kind, heads, tmp_path, monkeypatch):
    if kind == "open_clip":
        teacher, pixels, width = asked_vit.teacher(asked_vit.visual()), asked_vit.pixels(), 24
    else:
        use_tiny_architectures(monkeypatch)
        torch.save(biomedclip_state(timm_trunk()), tmp_path / "open_clip_pytorch_model.bin")
        teacher = load_biomedclip(TEACHERS["biomedclip"], str(tmp_path))
        teacher.model.double()
        pixels, width = asked_vit.wave((2, 3, 160, 160), 2), 24
    texts = asked_vit.texts()
    found = read(teacher, "grad-eclip", pixels, width, heads=heads)
    maps = (found @ texts.T).relu().transpose(1, 2)
    expected = gradient_maps(teacher, pixels, texts, heads)
    assert expected.std() > 0.01 * expected.max()
    torch.testing.assert_close(maps, expected, atol=FLOAT64, rtol=0)


def test_heads_are_two_algorithms():
    teacher = asked_vit.teacher(asked_vit.visual())
    first, second = (
        read(teacher, "grad-eclip", asked_vit.pixels(), 24, heads=heads)
        for heads in ("published", "model")
    )
    assert (first - second).abs().max() > 0.01 * first.abs().max()


@pytest.mark.parametrize("method", METHODS)
def test_the_pass_hands_it_on(method):
    """`encode` catches the same tokens; int8 moves a map by half a step of each component."""
    model = asked_vit.visual().float()
    teacher = asked_vit.teacher(model)
    ready = with_readout(teacher, query(method, 24, teacher.grid), np.eye(24))
    encoded = encode(ready, asked_vit.pixels().float())
    assert encoded.query is not None
    plain = encode(teacher, asked_vit.pixels().float())
    assert plain.query is None
    torch.testing.assert_close(encoded.tokens, plain.tokens, atol=0, rtol=0)
    exact = encoded.query.numpy()
    texts = asked_vit.texts().float().numpy()
    values, scale = quantise_query(encoded.query)
    arrays = {"query": values.numpy(), "query_scale": scale.numpy()}
    maps = query_maps(arrays, texts, (4, 4), (4, 4))
    wanted = np.maximum(exact @ texts.T, 0).transpose(0, 2, 1)
    step = arrays["query_scale"][:, None, :] / 2 * np.abs(texts).sum(axis=1)[None, :, None]
    assert (np.abs(maps - wanted) <= step * 1.001 + 1e-6).all()


def test_a_teacher_without_texts_is_refused():
    teacher = load_teacher("dinov2-small")
    with pytest.raises(UserError, match="--query needs a teacher with a text space"):
        with_readout(teacher, query("grad-eclip", 4, teacher.grid), np.eye(4))
