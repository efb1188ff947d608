"""A store in an S3 bucket, against a real server process: the same promises as on a file system."""

import signal
import subprocess
import sys
import time
import uuid
import warnings

import numpy as np
import pytest
import zarr

from shared.errors import UserError
from shared.targets import TargetStore
from shared.targets.namespace import list_namespaces, quarantine, quarantined
from shared.targets.segment.checks import keys_present
from shared.targets.segment.scan import scan
from shared.targets.storage.objects import ObjectStorage
from teacher_cache.keeping.gc import gc
from teacher_cache.keeping.info import info
from teacher_cache.keeping.merge import merge
from tests.fixtures.s3 import child_environment, s3_server, use
from tests.fixtures.targets import key, matrix_record, write_records

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server():
    with s3_server() as environment:
        yield environment


@pytest.fixture
def root(server, monkeypatch, tmp_path):
    use(server, monkeypatch)
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))
    return f"s3://bucket/{uuid.uuid4().hex}"


def assert_holds(store, numbers):
    assert len(store) == len(numbers)
    batch = store.batch([key(number) for number in numbers])
    for row, number in enumerate(numbers):
        for name, values in matrix_record(number).items():
            np.testing.assert_array_equal(getattr(batch, name)[row], values)


def test_records_read_back_and_plain_zarr_finds_them(root):
    namespace = write_records(root, range(6))
    assert_holds(TargetStore.open(root, teacher="dinov2-small"), range(6))
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Numcodecs codecs are not in the Zarr version 3 specification"
        )
        group = zarr.open_group(ObjectStorage(root)._store, path=namespace.name, mode="r")
        assert group.attrs["medalign"]["format"] == 2
        first = group[f"segments/{namespace.segments()[0]}"]
        assert first["key"].shape[1] == 32
        assert first["similarity"][0].dtype == np.float16
    assert all(checked.damage is None for checked in scan(root))


def test_a_segment_without_its_group_file_is_not_there_and_gc_sweeps_it(root):
    namespace = write_records(root, range(8))
    kept, cut = namespace.segments()
    storage = namespace.storage
    storage._store.store.delete(f"{namespace.path('segments', cut)}/zarr.json")
    assert namespace.segments() == [kept]
    assert len(TargetStore.open(root)) == 4
    gc(root, older_than=3600)
    assert storage.sizes(namespace.path("segments", cut))  # young: may be a writer at work
    (swept,) = gc(root, older_than=-1)
    assert swept.strays == [namespace.path("segments", cut)]
    with pytest.raises(FileNotFoundError):
        storage.sizes(namespace.path("segments", cut))


def test_age_is_measured_by_the_servers_clock(root, monkeypatch):
    """What another writer is just putting there is safe from a clock that is a year ahead."""
    namespace = write_records(root, range(8))
    kept, cut = namespace.segments()
    namespace.storage._store.store.delete(f"{namespace.path('segments', cut)}/zarr.json")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 365 * 86400)
    (swept,) = gc(root, older_than=3600)
    assert swept.strays == []
    assert namespace.storage.sizes(namespace.path("segments", cut))
    assert namespace.segments() == [kept]
    assert not [path for path in namespace.storage.sizes(namespace.name) if "clock" in path]


def test_damage_is_found(root):
    namespace = write_records(root, range(4))
    (segment,) = namespace.segments()
    path = namespace.path("segments", segment, "similarity/c/0/0")
    data = bytearray(namespace.storage.read(path))
    data[20] ^= 1
    namespace.storage._store.store.put(path, bytes(data))
    assert [checked.damage for checked in scan(root) if checked.damage]
    (swept,) = gc(root, damaged=True)
    assert swept.damaged == [segment]
    assert keys_present(namespace) == (set(), [])


def test_merge_and_info_between_a_folder_and_a_bucket(root, tmp_path):
    write_records(tmp_path / "store", range(5))
    quarantine(write_records(root, range(3)), key(9), "zero bytes")
    (merged,) = merge([tmp_path / "store"], root)
    assert merged.records == 2
    assert_holds(TargetStore.open(root), range(5))
    (described,) = info(root)
    assert described["records"] == 5
    assert described["quarantined"] == 1
    merge([root], tmp_path / "back")
    assert_holds(TargetStore.open(tmp_path / "back"), range(5))
    assert [record.key for record in quarantined(list_namespaces(tmp_path / "back")[0])] == [key(9)]


def test_nothing_there(root):
    with pytest.raises(UserError, match="no target store"):
        TargetStore.open(root)


def test_a_server_that_does_not_answer(root, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot read the store s3://"):
        TargetStore.open(root)
    with pytest.raises(UserError, match="cannot write to the store s3://"):
        write_records(root, range(2))


def test_an_unknown_scheme():
    with pytest.raises(UserError, match="s3://"):
        TargetStore.open("ftp://host/store")


WRITER = """
import sys
from tests.fixtures.progress import Countdown, at_object_writes
from tests.fixtures.targets import write_records
root, first, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
at_object_writes(Countdown(step))
write_records(root, range(first, 40), segment_records=2)
"""


def killed_writer(root, server, step, first=0):
    """Run a writer that dies before the `step`-th object it writes."""
    command = [sys.executable, "-c", WRITER, root, str(first), str(step)]
    died = subprocess.run(command, env=child_environment(server), check=False)
    assert died.returncode == -signal.SIGKILL


def test_a_killed_writer_leaves_only_whole_segments(root, server):
    """A writer asks for the namespace's three objects; a segment is ten.

    Two an array, manifest, `zarr.json` last.
    """
    held = 0
    for step, visible in ((3 + 9, 0), (3 + 10, 1), (3 + 19, 1), (3 + 23, 2)):
        killed_writer(root, server, step, first=held)
        held += 2 * visible
        (namespace,) = list_namespaces(root)
        present, damaged = keys_present(namespace)
        assert not damaged
        assert present == {key(number) for number in range(held)}
        assert all(checked.damage is None for checked in scan(root))
        if held:
            assert_holds(TargetStore.open(root), range(held))
    write_records(root, range(held, 10), segment_records=2)
    assert_holds(TargetStore.open(root), range(10))


@pytest.mark.parametrize("files", [1, 2])
def test_a_namespace_that_is_half_made_is_said_to_be_and_finished_by_the_next_writer(
    root, server, files
):
    killed_writer(root, server, files)
    [damage] = [checked.damage for checked in scan(root) if checked.damage is not None]
    assert "the same `cache build` writes it again" in damage
    write_records(root, range(2))
    assert all(checked.damage is None for checked in scan(root))
    assert_holds(TargetStore.open(root), range(2))
