"""Stores that are joined, segment by segment."""

import numpy as np
import pytest

from shared.errors import UserError
from shared.targets import TargetStore
from teacher_cache.keeping.gc import gc
from teacher_cache.keeping.info import info
from teacher_cache.keeping.merge import merge
from tests.fixtures.targets import key, write_records

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("precision", ["f16", "u8"])
def test_merge_joins_and_gc_compacts_without_changing_a_value(tmp_path, precision):
    write_records(tmp_path / "a", range(6), precision=precision)
    write_records(tmp_path / "b", range(4, 9), precision=precision)
    before = TargetStore.open(tmp_path / "b").batch([key(number) for number in range(4, 9)])
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert [one.records for one in merged] == [6, 3]
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")[0].segments == 0
    store = TargetStore.open(tmp_path / "c")
    first = store.batch([key(number) for number in range(9)])
    (dry,) = gc(tmp_path / "c", dry_run=True)
    (swept,) = gc(tmp_path / "c")
    assert dry.records == swept.records == 2
    again = TargetStore.open(tmp_path / "c").batch([key(number) for number in range(9)])
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(again.similarity[4:], before.similarity)
    assert info(tmp_path / "c")[0]["superseded"] == 0


def test_merge_refuses_a_damaged_source(tmp_path):
    namespace = write_records(tmp_path / "a", range(3))
    (segment,) = namespace.segments()
    shard = tmp_path / "a" / namespace.path("segments", segment, "similarity/c/0/0")
    data = bytearray(shard.read_bytes())
    data[7] ^= 16
    shard.write_bytes(bytes(data))
    with pytest.raises(UserError, match="similarity/c/0/0"):
        merge([tmp_path / "a"], tmp_path / "b")
    assert len(TargetStore.open(tmp_path / "b")) == 0
