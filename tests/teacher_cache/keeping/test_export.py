"""Targets in a plain folder, one file per image."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from shared.errors import UserError
from shared.targets import TargetStore
from teacher_cache.keeping.export import export
from tests.fixtures.targets import identity, key, matrix_record, write_records

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_export_writes_one_file_an_image(tmp_path, form):
    write_records(tmp_path / "store", range(3))
    store = TargetStore.open(tmp_path / "store")
    paths = list(export(store, tmp_path / "out", form))
    assert sorted(path.stem for path in paths) == sorted(key(number).hex() for number in range(3))
    path = tmp_path / "out" / f"{key(1).hex()}.{form}"
    found = dict(np.load(path)) if form == "npz" else load_file(path)
    for name, values in matrix_record(1).items():
        np.testing.assert_array_equal(found[name], values)
    assert (
        json.loads((tmp_path / "out" / "identity.json").read_text())["fingerprint"]
        == identity().fingerprint()
    )
    stamps = [one.stat().st_mtime_ns for one in paths]
    assert [one.stat().st_mtime_ns for one in export(store, tmp_path / "out", form)] == stamps
    write_records(tmp_path / "second", range(1), geometry="crop")
    with pytest.raises(UserError, match="empty folder"):
        list(export(TargetStore.open(tmp_path / "second"), tmp_path / "out", form))
