"""Reading as training does it.

Workers of every kind, prefetch, order by segment, the side index of keys.
"""

import os
import pickle
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pytest
from torch.utils.data import DataLoader

from shared.imaging import keys
from shared.imaging.images import ImageReference
from shared.imaging.keys import content_key
from shared.targets import DamagedSegment, TargetStore
from shared.targets.prefetch import prefetch
from tests.fixtures.targets import TargetDataset, key, matrix_record, write_records

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("context", ["spawn", "forkserver", "fork"])
def test_workers_read_after_the_parent_has_read(tmp_path, context):
    write_records(tmp_path / "store", range(8), segment_records=3)
    store = TargetStore.open(tmp_path / "store")
    np.testing.assert_array_equal(
        store[key(0)].similarity, matrix_record(0)["similarity"]
    )  # the parent reads first
    loader: Any = DataLoader(
        cast("Any", TargetDataset(store, [5, 0, 7, 2])),
        num_workers=1,
        multiprocessing_context=context,
        batch_size=None,
    )
    seen = []
    for number, similarity in loader:
        seen.append(number)
        np.testing.assert_array_equal(similarity, matrix_record(number)["similarity"])
    assert seen == [5, 0, 7, 2]
    np.testing.assert_array_equal(store[key(1)].similarity, matrix_record(1)["similarity"])


def test_prefetch_yields_the_batches_in_order(tmp_path):
    write_records(tmp_path / "store", range(12))
    store = TargetStore.open(tmp_path / "store")
    batches = [[key(number) for number in group] for group in ([3, 1], [7], [11, 0, 5], [2])]
    for batch, wanted in zip(prefetch(store, batches), batches, strict=True):
        np.testing.assert_array_equal(batch.similarity, store.batch(wanted).similarity)


def test_prefetch_raises_where_the_batch_would_come(tmp_path):
    write_records(tmp_path / "store", range(3))
    flow = prefetch(TargetStore.open(tmp_path / "store"), [[key(0)], [key(99)], [key(1)]], depth=1)
    assert len(next(flow).similarity) == 1
    with pytest.raises(KeyError):
        next(flow)
    with pytest.raises(ValueError, match="depth"):
        next(prefetch(TargetStore.open(tmp_path / "store"), [[key(0)]], depth=0))


def test_an_abandoned_prefetch_stops(tmp_path):
    write_records(tmp_path / "store", range(3))
    flow: Any = prefetch(TargetStore.open(tmp_path / "store"), ([key(0)] for _ in range(10**9)))
    next(flow)
    flow.close()


def test_keys_by_segment(tmp_path):
    write_records(tmp_path / "store", range(10), segment_records=4)
    store = TargetStore.open(tmp_path / "store")
    groups = list(store.by_segment())
    assert sorted(map(len, groups)) == [2, 4, 4]
    assert {one for group in groups for one in group} == {key(number) for number in range(10)}
    for number, group in enumerate(groups):
        assert store.segments_of(group) == [number] * len(group)
    assert store.segments_of([key(77)]) == [-1]


def test_an_empty_store_has_nothing(tmp_path):
    write_records(tmp_path / "store", [])
    store = TargetStore.open(tmp_path / "store")
    assert len(store) == 0
    assert key(0) not in store
    assert store.segments_of([key(0)]) == [-1]
    assert list(store.by_segment()) == []
    assert store.missing([key(0)]) == [key(0)]
    assert store.batch([]).similarity.shape == (0, 66)


def image_files(folder, count, age=60):
    references = []
    for number in range(count):
        path = folder / f"{number}.png"
        path.write_bytes(f"image {number}".encode())
        when = time.time() - age
        os.utime(path, (when, when))
        references.append(ImageReference(path, None))
    return references


@pytest.fixture
def hashed(monkeypatch):
    """Count the files that are really hashed; change times of a moment ago pass as settled."""
    calls, hash_ = [], keys._hash

    def counted(path, parts):
        calls.append(path.name)
        return hash_(path, parts)

    monkeypatch.setattr(keys, "_hash", counted)
    monkeypatch.setattr(keys, "_SETTLED", -1)
    return calls


def test_keys_are_hashed_once(tmp_path, hashed):
    references = [*image_files(tmp_path, 4), ImageReference(tmp_path / "1.png", "frame=2")]
    first = dict(keys.content_keys(references * 2))
    assert sorted(hashed) == ["0.png", "1.png", "2.png", "3.png"]  # once for all of a file's parts
    assert first == {one: content_key(one.path, one.part) for one in references}
    assert dict(keys.content_keys(references)) == first
    assert len(hashed) == 4


@pytest.mark.parametrize("change", ["content", "same size", "touched", "replaced with old times"])
def test_a_changed_file_is_hashed_again(tmp_path, hashed, change):
    (reference,) = image_files(tmp_path, 1)
    dict(keys.content_keys([reference]))
    before = reference.path.stat()
    if change == "content":
        reference.path.write_bytes(b"something else")
    elif change == "same size":
        reference.path.write_bytes(b"IMAGE 0")
    elif change == "touched":
        os.utime(reference.path)
    else:
        reference.path.write_bytes(b"IMAGE 0")
        os.utime(reference.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert dict(keys.content_keys([reference])) == {reference: content_key(reference.path)}
    assert len(hashed) == 2


def test_a_file_of_this_moment_is_not_remembered(tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(keys, "_SETTLED", 3 * 10**9)
    (reference,) = image_files(tmp_path, 1, age=0)
    for count in (1, 2):
        dict(keys.content_keys([reference]))
        assert len(hashed) == count


def test_a_missing_file_is_an_error_of_its_own(tmp_path, hashed):
    references = [ImageReference(tmp_path / "none.png", None), *image_files(tmp_path, 1)]
    found = dict(keys.content_keys(references))
    assert isinstance(found[references[0]], FileNotFoundError)
    assert found[references[1]] == content_key(references[1].path)


@pytest.mark.parametrize("trouble", ["damaged", "locked", "no folder"])
def test_without_its_table_every_file_is_hashed(tmp_path, cache, hashed, trouble):
    references = image_files(tmp_path, 2)
    wanted = {one: content_key(one.path) for one in references}
    held = None
    if trouble == "no folder":
        cache.write_text("a file where the folder should be")
    else:
        cache.mkdir()
        if trouble == "damaged":
            (cache / "keys.sqlite").write_bytes(b"not a database" * 100)
        else:
            dict(keys.content_keys(references[:1]))
            held = sqlite3.connect(cache / "keys.sqlite")
            held.execute("begin exclusive")
    assert dict(keys.content_keys(references)) == wanted
    if held is not None:
        held.close()


def test_damage_crosses_process_borders():
    """A DataLoader's worker sends an exception as its type and its message."""
    error = DamagedSegment("damaged segment x")
    assert type(error)(str(error)).args == error.args
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (DamagedSegment, "damaged segment x")


def test_threads_share_a_store_that_keeps_few_segments_open(tmp_path, monkeypatch):
    """Each closes what another one is about to use."""
    monkeypatch.setattr("shared.targets.segment.held.KEPT", 1)
    interval = sys.getswitchinterval()
    write_records(tmp_path / "store", range(12), segment_records=2)
    store = TargetStore.open(tmp_path / "store")

    def read(number):
        wanted = matrix_record(number)["similarity"]
        return np.array_equal(store[key(number)].similarity, wanted)

    try:
        sys.setswitchinterval(1e-6)  # each takes its turn after a few steps
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(read, list(range(12)) * 40))
    finally:
        sys.setswitchinterval(interval)
    assert len(store._open) <= 8 + 1
