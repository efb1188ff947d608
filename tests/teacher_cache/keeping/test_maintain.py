"""Listing, describing, joining and taking out of a store, without a teacher or a data set."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from shared.errors import UserError
from shared.imaging.geometry import Box
from shared.targets import TargetStore, TargetWriter
from shared.targets.namespace import list_namespaces, quarantine
from shared.targets.numbers.encodings import encode_targets
from teacher_cache.keeping.maintain import export, gc, info, listing, merge
from tests.fixtures.targets import identity, key, matrix_record, write_records

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))


def write_factors(root, count, precision="u8"):
    kind = identity(encoding="factors", precision=precision, tolerance=0.1)
    random = torch.Generator().manual_seed(0)
    with TargetWriter(root, kind, segment_records=3) as writer:
        for number in range(count):
            rank = 1 + number  # each segment is as wide as its widest record
            tokens = torch.randn(1, 12, rank, generator=random) @ torch.randn(
                rank, 16, generator=random
            )
            (record,) = encode_targets(tokens, torch.rand(1, 12), [Box(0, 0, 1, 1)], (3, 4), kind)
            writer.add(key(number), record)
    return writer.namespace


def test_info_counts_and_sizes(tmp_path):
    namespace = write_records(tmp_path / "store", range(5))
    write_records(tmp_path / "store", range(3, 7))
    quarantine(namespace, key(50), "not an image")
    (described,) = info(tmp_path / "store")
    assert described["records"] == 7
    assert described["superseded"] == 2
    assert described["segments"] == 3
    assert described["quarantined"] == 1
    assert described["damaged"] == []
    assert described["fingerprint"] == identity().fingerprint()
    on_disk = sum(
        path.stat().st_size
        for path in (tmp_path / "store").rglob("segments/*/*/**/*")
        if path.is_file()
    )
    groups = len(namespace.segments()) * len(
        (tmp_path / "store" / namespace.name / "quarantine/zarr.json").read_bytes()
    )
    assert abs(described["bytes"] - on_disk) < groups * 2
    json.dumps(described)


def test_info_tells_ranks_and_errors_of_factors(tmp_path):
    write_factors(tmp_path / "store", 5)
    (described,) = info(tmp_path / "store")
    assert (
        1
        <= described["rank"]["smallest"]
        <= described["rank"]["mean"]
        <= described["rank"]["largest"]
        <= 12
    )
    assert 0 < described["error"]["24x24"]["mean"] <= described["error"]["24x24"]["largest"] <= 0.1


def test_info_reports_damage_and_goes_on(tmp_path):
    namespace = write_records(tmp_path / "store", range(8))
    (
        tmp_path / "store" / namespace.path("segments", namespace.segments()[0], "manifest.json")
    ).unlink()
    (described,) = info(tmp_path / "store")
    assert described["records"] == 4
    assert len(described["damaged"]) == 1


def test_listing_names_every_record_once_as_live(tmp_path):
    namespace = write_records(tmp_path / "store", range(4))
    write_records(tmp_path / "store", range(2, 5))
    rows = list(listing(namespace))
    assert len(rows) == 7
    assert sorted(row.key for row in rows if not row.superseded) == sorted(
        key(number).hex() for number in range(5)
    )


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
