"""The `patches` encoding: its rotation against SciPy's matrix, E_v and S against float64."""

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from shared.errors import UserError
from shared.imaging.geometry import Box, content_box, coverage
from shared.imaging.grid import Grid
from shared.targets import Identity, TargetStore, TargetWriter
from shared.targets.numbers.encodings import encode_targets
from shared.targets.numbers.on_device import quantise_on_device
from shared.targets.numbers.patches import quantise_patches
from shared.targets.numbers.rotation import rotate, rotate_back, signs
from tests.fixtures.targets import identity, key, write_records

pytestmark = pytest.mark.unit
NATIVE, WIDTH = (6, 6), 24


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("width", "block"), [(384, 128), (768, 256), (1024, 1024), (7, 1)])
def test_the_rotation_is_hadamards_matrix_behind_fixed_signs(width, block):
    values = np.random.default_rng(0).normal(size=(3, width))
    matrix = np.kron(np.eye(width // block), hadamard(block)) / np.sqrt(block)
    wanted = (values * signs(width)) @ matrix.T
    np.testing.assert_allclose(rotate(values), wanted, atol=1e-6)  # 1 / sqrt(2^k) in float32
    np.testing.assert_allclose(rotate_back(rotate(values)), values, atol=1e-6)


def test_the_signs_are_those_of_every_store():
    """Another sign would be another E_v of every store: SHAKE-128 of the text, bit by bit."""
    assert "".join("-" if sign < 0 else "+" for sign in signs(16)) == "-----+++-++----+"
    np.testing.assert_array_equal(signs(1024)[:384], signs(384))


@pytest.mark.parametrize("width", [384, 768, 7, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_device_gives_the_very_bytes(width, dtype):
    """Of a batch, with channels that stand out and a patch of zeros."""
    random = torch.Generator().manual_seed(width)
    tokens = torch.randn(3, 36, width, generator=random) * 10 ** torch.randn(
        width, generator=random
    )
    tokens[1, 5] = 0
    values, scale = quantise_on_device(tokens.to(dtype))
    for row, one in enumerate(tokens.to(dtype).float().numpy()):
        wanted = quantise_patches(one)
        assert values[row].numpy().tobytes() == wanted[0].tobytes()
        assert scale[row].numpy().tobytes() == wanted[1].tobytes()


def tokens_with_outliers(count=3):
    """E_v as ViTs have it: two channels are ten times the others."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(count, 36, WIDTH, generator=random)
    tokens[:, :, 3] += 25
    tokens[:, :, 17] *= 12
    return tokens


def write(root, tokens):
    kind = identity(encoding="patches", width=WIDTH, rotation="hadamard", grid=NATIVE)
    boxes = [content_box(100, height, "pad") for height in (100, 60, 30)]
    attention = torch.rand(3, 36, generator=torch.Generator().manual_seed(1))
    with TargetWriter(root, kind, segment_records=2) as writer:
        for number, record in enumerate(encode_targets(tokens, attention, boxes, NATIVE, kind)):
            writer.add(key(number), record)
    return attention, boxes


@pytest.mark.parametrize("grid", [NATIVE, (12, 12), (9, 7)])
def test_features_and_targets_on_any_grid(tmp_path, grid):
    """Against torch's own bilinear interpolation of E_v, and the cosine in float64."""
    tokens = tokens_with_outliers()
    attention, boxes = write(tmp_path, tokens)
    store = TargetStore.open(tmp_path, grid=grid)
    keys = [key(number) for number in (2, 0, 1)]
    order = torch.tensor([2, 0, 1])

    def resized(values):
        maps = values.transpose(1, 2).reshape(3, -1, *NATIVE).double()
        moved = torch.nn.functional.interpolate(maps, grid, mode="bilinear", align_corners=False)
        return moved.flatten(2).transpose(1, 2)

    wanted = resized(tokens[order])
    step = rotate(tokens.numpy()).__abs__().max() / 127  # of int8, of the largest row
    features, shown = store.features(keys)
    assert features.shape == (3, grid[0] * grid[1], WIDTH)
    error = np.linalg.norm(features - wanted.numpy(), axis=2).max()
    assert error <= step / 2 * np.sqrt(WIDTH)
    unit = torch.nn.functional.normalize(wanted, dim=-1)
    rows, columns = np.triu_indices(grid[0] * grid[1], 1)
    batch = store.batch(keys)
    exact = (unit @ unit.transpose(1, 2)).numpy()[:, rows, columns]
    smallest = wanted.norm(dim=-1).min()
    assert np.abs(batch.similarity - exact).max() <= 2 * error / float(smallest)
    assert batch.attention is not None
    np.testing.assert_allclose(
        batch.attention, resized(attention[order, :, None])[..., 0], atol=1e-6
    )
    cover = [coverage(boxes[int(number)], Grid(*grid)) for number in order]
    np.testing.assert_array_equal(batch.coverage, cover)
    np.testing.assert_array_equal(shown, cover)


def test_outliers_cost_less_behind_the_rotation():
    tokens = tokens_with_outliers(1)[0].numpy()
    values, scale = quantise_patches(tokens)
    turned = rotate_back(values.astype(np.float32) * scale[:, None])
    plain = np.rint(tokens / np.abs(tokens).max(1, keepdims=True) * 127)
    plain *= np.abs(tokens).max(1, keepdims=True) / 127
    assert np.linalg.norm(turned - tokens) < np.linalg.norm(plain - tokens) / 1.5


def test_a_patch_of_zeros_stays_one():
    values, scale = quantise_patches(np.zeros((2, 8), np.float32))
    assert not values.any()
    assert not scale.any()


def test_other_encodings_keep_no_features(tmp_path):
    write_records(tmp_path, range(2))
    with pytest.raises(UserError, match="keeps no features: build with --encoding patches"):
        TargetStore.open(tmp_path).features([key(0)])


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 3},
        {"encoding": "patches", "width": 3},
        {"encoding": "patches", "width": 3, "rotation": "hadamard", "precision": "f16"},
        {"encoding": "patches", "width": 3, "rotation": "hadamard", "format": 1},
    ],
)
def test_an_identity_that_contradicts_itself_is_none(changes):
    with pytest.raises(ValueError, match="patches"):
        Identity(**{**identity().model_dump(), "precision": "u8", **changes})


def test_a_teacher_of_another_width_is_refused():
    kind = identity(encoding="patches", width=WIDTH + 1, rotation="hadamard", grid=NATIVE)
    with pytest.raises(ValueError, match=f"the identity says {WIDTH + 1} channels"):
        encode_targets(tokens_with_outliers(1), torch.rand(1, 36), [Box(0, 0, 1, 1)], NATIVE, kind)
