"""What opening, a record, and a new segment cost a reader of a bucket, and what it keeps.

Counted in requests and bytes by a proxy before a real server.
"""

import gc as collector
import shutil
import time
import tracemalloc
import uuid

import numpy as np
import pytest

from shared.targets import TargetStore, opening
from shared.targets.catalogue import publish_catalogue, unpack_catalogue
from shared.targets.segment import held
from shared.targets.segment.reader import SegmentReader
from tests.fixtures.proxy import counted_bucket
from tests.fixtures.targets import key, matrix_record, write_records

pytestmark = pytest.mark.integration
HOURS = 3 * 3600  # a reader lists an hour before the last segment that it knows


@pytest.fixture(scope="module")
def bucket():
    with counted_bucket() as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))


def old_store(monkeypatch, segments):
    """Write a store of segments of two records, hours ago but for the last; with a catalogue."""
    root = f"s3://bucket/{uuid.uuid4().hex}"
    with monkeypatch.context() as then:
        then.setattr(time, "time", lambda real=time.time: real() - HOURS)
        write_records(root, range(2 * segments - 2), segment_records=2)
    namespace = write_records(root, range(2 * segments - 2, 2 * segments), segment_records=2)
    assert publish_catalogue(namespace, force=True) is not None
    return root, namespace


def counted(proxy, work):
    """Requests and bytes received of some work."""
    proxy.requests = proxy.bytes = 0
    work()
    return proxy.requests, proxy.bytes


def test_a_catalogued_store_opens_in_as_many_requests_whatever_its_size(
    bucket, tmp_path, monkeypatch
):
    found = []
    for segments in (12, 36):
        root, _ = old_store(monkeypatch, segments)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        requests, _ = counted(bucket, lambda root=root: TargetStore.open(root))
        found.append(requests)
    assert found[0] == found[1] <= 12


def test_segments_of_the_last_hour_are_listed_as_folders(bucket, tmp_path):
    """A segment is ten objects, and one folder: a tenth of the pages of a listing."""
    root = f"s3://bucket/{uuid.uuid4().hex}"
    namespace = write_records(root, range(16), segment_records=1)
    publish_catalogue(namespace)
    known = frozenset(namespace.segments())
    _, objects = counted(bucket, namespace.segments)
    _, folders = counted(bucket, lambda: namespace.segments(known=known))
    assert folders < objects / 5
    write_records(root, [300])
    cut = write_records(root, [301]).segments()[-1]
    namespace.storage.discard(namespace.path("segments", cut, "zarr.json"))
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert set(TargetStore.open(root).keys()) == {key(number) for number in [*range(16), 300]}


def test_a_first_record_takes_the_manifest_and_a_range_an_array(bucket, monkeypatch):
    root, _ = old_store(monkeypatch, 6)
    store = TargetStore.open(root)
    requests, _ = counted(bucket, lambda: store[key(3)])
    assert requests == 1 + len(matrix_record(0))


def test_one_new_segment_costs_a_reader_the_same_whatever_the_store_holds(bucket, monkeypatch):
    found = []
    for segments in (12, 36):
        root, _ = old_store(monkeypatch, segments)
        TargetStore.open(root)
        write_records(root, [1000, 1001])
        found.append(counted(bucket, lambda root=root: TargetStore.open(root)))
        assert len(TargetStore.open(root)) == 2 * segments + 2
    assert found[0][0] == found[1][0]
    assert abs(found[0][1] - found[1][1]) < 100  # one more name of a segment would be more


def test_a_new_catalogue_is_not_read_where_manifests_are_less(bucket, tmp_path, monkeypatch):
    root, namespace = old_store(monkeypatch, 6)
    TargetStore.open(root)
    write_records(root, [1000])
    publish_catalogue(namespace, force=True)
    read = []

    def reading(*one):
        read.append(one)
        return unpack_catalogue(*one)

    monkeypatch.setattr(opening, "unpack_catalogue", reading)
    monkeypatch.setattr(opening, "_MANIFEST", 1)
    assert len(TargetStore.open(root)) == 13
    assert not read
    shutil.rmtree(tmp_path / "cache")
    assert len(TargetStore.open(root)) == 13
    assert len(read) == 1


def test_an_open_reader_keeps_no_more_however_many_segments_it_has_read(tmp_path, monkeypatch):
    """What it says that a segment takes is about what it takes."""
    records = 64
    namespace = write_records(tmp_path / "store", range(records * 18), segment_records=records)
    store = TargetStore.open(tmp_path / "store")
    size = SegmentReader(namespace, namespace.segments()[0]).size
    monkeypatch.setattr(held, "KEPT", 5 * size)

    def read(numbers):
        for number in numbers:
            store[key(number * records)]
        collector.collect()
        return tracemalloc.get_traced_memory()[0]

    read([0])  # what is imported when it is first needed
    tracemalloc.start()
    try:
        begin = tracemalloc.get_traced_memory()[0]
        few, many = read(range(1, 8)), read(range(8, 18))
    finally:
        tracemalloc.stop()
    assert len(store._open) == 5
    assert abs(many - few) < size
    assert 4 * size * 0.5 < few - begin < 5 * size * 1.5
    np.testing.assert_array_equal(store[key(5)].similarity, matrix_record(5)["similarity"])
