"""Superseded records go, what is read stays as it is."""

import numpy as np
import pytest

from shared.targets import TargetStore
from shared.targets.namespace import list_namespaces
from teacher_cache.keeping.gc import gc
from teacher_cache.keeping.merge import merge
from tests.fixtures.targets import key, write_factors

pytestmark = pytest.mark.unit


def test_gc_of_factors_keeps_values_where_widths_differ(tmp_path):
    namespace = write_factors(tmp_path / "store", 6)
    store = TargetStore.open(tmp_path / "store", grid=(5, 5))
    before = store.batch([key(number) for number in range(6)])
    write_factors(tmp_path / "other", 4)
    for one in list_namespaces(tmp_path / "other"):
        assert one.name == namespace.name
    merge([tmp_path / "other"], tmp_path / "store")
    gc(tmp_path / "store")
    after = TargetStore.open(tmp_path / "store", grid=(5, 5)).batch(
        [key(number) for number in range(6)]
    )
    np.testing.assert_array_equal(before.similarity, after.similarity)
