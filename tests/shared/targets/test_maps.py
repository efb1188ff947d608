"""Maps for questions: their names, their grid, beside targets in one store."""

import hashlib

import numpy as np
import pytest
import torch

from shared.errors import UserError
from shared.targets import TargetStore, TargetWriter
from shared.targets.maps import map_key, maps_of
from tests.fixtures.targets import identity, key, matrix_record, write_records

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))


def test_a_maps_name_is_that_of_every_store():
    text = hashlib.sha256(b"is it clear?").digest()
    assert map_key(key(1), " Is it\nCLEAR? ") == hashlib.sha256(key(1) + text).digest()
    assert map_key(key(1), "Is it clear") != map_key(key(1), "Is it clear?")
    assert map_key(key(2), "Is it clear?") != map_key(key(1), "Is it clear?")


@pytest.mark.parametrize("grid", [(3, 4), (6, 8)])
def test_maps_are_read_on_the_students_grid(tmp_path, grid):
    write_records(tmp_path, range(3))  # targets lie beside them
    values = np.random.default_rng(0).uniform(size=(2, 12)).astype(np.float32)
    with TargetWriter(tmp_path, identity(encoding="maps", teacher="regions")) as writer:
        for text, map_ in zip(("a", "b"), values, strict=True):
            cover = np.full(12, 255, np.uint8)
            writer.add(map_key(key(0), text), {"attention": map_, "coverage": cover})
    opened = TargetStore.open(tmp_path, grid=grid, maps=True)
    first, nothing, second = maps_of(opened, key(0), ["A", "c", "b"])
    assert nothing is None
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(values).reshape(2, 1, 3, 4), grid, mode="bilinear", align_corners=False
    ).reshape(2, -1)
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(np.stack([first, second]), wanted, atol=1e-6)
    assert maps_of(opened, key(1), ["a"]) == [None]
    np.testing.assert_array_equal(
        TargetStore.open(tmp_path)[key(0)].similarity, matrix_record(0)["similarity"]
    )


def test_a_store_without_maps_says_so(tmp_path):
    write_records(tmp_path, range(2))
    with pytest.raises(UserError, match="holds no maps: `cache query maps` makes them"):
        TargetStore.open(tmp_path, maps=True)
