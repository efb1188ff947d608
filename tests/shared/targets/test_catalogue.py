"""The catalogue: a fresh host reads one object; what is wrong with it loses nothing."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from shared.targets import TargetStore, catalogue
from shared.targets.catalogue import discard_catalogues, newest_catalogue, publish_catalogue
from shared.targets.namespace import CATALOGUE, catalogue_files
from shared.targets.opening import open_index
from shared.targets.segment import manifest
from shared.targets.segment.scan import scan
from shared.targets.storage import LocalStorage
from shared.targets.storage.objects import ObjectStorage
from teacher_cache.keeping.gc import gc
from teacher_cache.keeping.merge import merge
from tests.fixtures.s3 import s3_server, use
from tests.fixtures.targets import identity, key, matrix_record, write_records

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server():
    with s3_server() as environment:
        yield environment


@pytest.fixture(params=["folder", "s3"])
def root(request, tmp_path, monkeypatch):
    """The root of a store in a folder, and in a bucket."""
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(catalogue, "AFTER", 3)
    if request.param == "folder":
        return str(tmp_path / "store")
    use(request.getfixturevalue("server"), monkeypatch)
    return f"s3://bucket/{tmp_path.name}"


def fresh(monkeypatch, tmp_path):
    """Take this process for a host that has seen nothing."""
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def holds(root, numbers):
    store = TargetStore.open(root)
    assert set(store.keys()) == {key(number) for number in numbers}
    batch = store.batch([key(number) for number in numbers])
    for row, number in enumerate(numbers):
        np.testing.assert_array_equal(batch.similarity[row], matrix_record(number)["similarity"])


def read_manifests(monkeypatch):
    """Count the segments whose manifests are read for their keys."""
    read = []
    original = manifest.read_manifests

    def counted(namespace, segments):
        read.extend(segments)
        return original(namespace, segments)

    monkeypatch.setattr("shared.targets.index.read_manifests", counted)
    return read


def test_a_fresh_host_reads_the_catalogue_and_what_came_after(root, tmp_path, monkeypatch):
    namespace = write_records(root, range(8), segment_records=2)
    assert publish_catalogue(namespace) is not None
    assert publish_catalogue(namespace) is None  # it lacks nothing
    write_records(root, range(8, 10), segment_records=2)
    assert publish_catalogue(namespace) is None  # one segment is not worth another
    fresh(monkeypatch, tmp_path)
    read = read_manifests(monkeypatch)
    assert len(TargetStore.open(root)) == 10
    assert read == [namespace.segments()[-1]]
    holds(root, range(10))
    read.clear()
    assert len(TargetStore.open(root)) == 10
    assert not read  # this host's own index is enough
    assert not [one.damage for one in scan(root) if one.damage]


def test_a_bucket_is_listed_from_the_catalogues_end_alone(root, tmp_path, monkeypatch):
    namespace = write_records(root, range(8), segment_records=2)
    publish_catalogue(namespace)
    listed = []
    for kind in (LocalStorage, ObjectStorage):
        original = kind.names

        def names(self, folder, begin="", known=frozenset(), original=original):
            listed.append(begin)
            return original(self, folder, begin, known)

        monkeypatch.setattr(kind, "names", names)
    monkeypatch.setattr("shared.targets.opening.SLACK", 0)
    fresh(monkeypatch, tmp_path)
    last = namespace.segments()[-1].partition("-")[0]
    listed.clear()
    assert len(open_index(namespace).keys) == 8
    assert listed == [last if root.startswith("s3://") else ""]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_damaged_catalogue_is_found_and_loses_nothing(root, tmp_path, monkeypatch, damage):
    namespace = write_records(root, range(8), segment_records=2)
    publish_catalogue(namespace)
    name, size = newest_catalogue(namespace) or ("", 0)
    path = namespace.path(CATALOGUE, name)
    data = bytearray(namespace.storage.read(path))
    data[size // 2] ^= 1
    wrong = {"flip": bytes(data), "cut": bytes(data[:50]), "empty": b"", "foreign": b"{}\n"}
    namespace.storage.discard(path)
    namespace.storage.create(path, wrong[damage])
    fresh(monkeypatch, tmp_path)
    holds(root, range(8))
    [found] = [one.damage for one in scan(root) if one.damage]
    assert "delete it, nothing is lost with it" in found


def test_gc_leaves_no_catalogue_that_names_what_it_removed(root, tmp_path, monkeypatch):
    namespace = write_records(root, range(8), segment_records=2)
    write_records(root, range(1, 5), segment_records=2)
    publish_catalogue(namespace)
    before = set(namespace.segments())
    gc(root)
    assert before - set(namespace.segments())
    fresh(monkeypatch, tmp_path)
    holds(root, range(8))
    for name, size in catalogue_files(namespace).items():
        index = catalogue.read_catalogue(namespace, name, size)
        assert index is not None
        assert set(index.segments) <= set(namespace.segments())


def test_a_host_whose_index_names_removed_segments_sees_them_gone(root):
    """Its cached index was begun with a catalogue that `cache gc` has discarded."""
    namespace = write_records(root, range(8), segment_records=2)
    publish_catalogue(namespace)
    assert len(TargetStore.open(root)) == 8
    gone = namespace.segments()[0]
    discard_catalogues(namespace)
    namespace.storage.remove(namespace.path("segments", gone))
    assert len(TargetStore.open(root)) == 6
    holds(root, range(2, 8))


def test_a_damaged_catalogue_vouches_for_no_index_of_before(root, monkeypatch):
    """This host's index names a segment that `cache gc` removed before it wrote the catalogue."""
    namespace = write_records(root, range(8), segment_records=2)
    publish_catalogue(namespace)
    assert len(TargetStore.open(root)) == 8
    monkeypatch.setattr("shared.targets.opening.SLACK", 0)
    discard_catalogues(namespace)
    namespace.storage.remove(namespace.path("segments", namespace.segments()[0]))
    publish_catalogue(namespace)
    name, _ = newest_catalogue(namespace) or ("", 0)
    namespace.storage.discard(namespace.path(CATALOGUE, name))
    namespace.storage.create(namespace.path(CATALOGUE, name), b"{}")
    assert len(TargetStore.open(root)) == 6
    assert len(TargetStore.open(root)) == 6  # by the index that was just made, too
    holds(root, range(2, 8))


def test_builds_merges_and_format_1(root, tmp_path):
    namespace = write_records(root, range(8), segment_records=2)
    other = f"{root}-other"
    merge([root], other)
    merged = TargetStore.open(other).namespace
    assert len(catalogue_files(merged)) == 1
    assert not catalogue_files(namespace)
    assert publish_catalogue(namespace, force=True) is not None
    for number in range(8, 16):  # each makes one; the two newest stay
        write_records(root, [number])
        publish_catalogue(namespace, force=True)
    assert len(catalogue_files(namespace)) == 2
    old = write_records(tmp_path / "old", range(8), segment_records=2, format=1)
    assert publish_catalogue(old, force=True) is None
    assert identity().format == 2
    assert not list(Path(tmp_path / "old").rglob(CATALOGUE))
