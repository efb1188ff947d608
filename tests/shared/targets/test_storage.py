"""Every promise of `Storage`, kept by each place: a folder, an S3 server, and memory."""

import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.errors import UserError
from shared.targets.storage import LocalStorage, Storage, join, open_storage
from shared.targets.storage.objects import ObjectStorage
from tests.fixtures.s3 import s3_server, use

pytestmark = pytest.mark.integration

FILES = {"a/zarr.json": b"{1}", "a/c/0": b"0123456789", "manifest.json": b"m", "zarr.json": b"{}"}
SEGMENT = "space-1/segments/seg1"


@pytest.fixture(scope="module")
def server():
    with s3_server() as environment:
        yield environment


@pytest.fixture(params=["folder", "s3", "memory"])
def storage(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return open_storage(tmp_path / "store")
    if request.param == "memory":
        return open_storage("memory:///store")
    use(request.getfixturevalue("server"), monkeypatch)
    return open_storage(f"s3://bucket/{uuid.uuid4().hex}")


def put(storage, path, data):
    """Write a file behind the storage's back."""
    if isinstance(storage, LocalStorage):
        target = storage.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    else:
        storage._store.store.put(path, data)


class TestStorage:
    def test_it_is_a_storage_and_says_where_it_is(self, storage):
        assert isinstance(storage, Storage)
        assert storage.location

    def test_nothing_is_there_at_first(self, storage):
        assert storage.names("") == []
        assert storage.names("space-1/segments") == []
        assert not storage.exists("space-1/zarr.json")
        for ask in (storage.sizes, storage.read, storage.modified):
            with pytest.raises(FileNotFoundError):
                ask("space-1")
        with pytest.raises(FileNotFoundError):
            storage.read_range("space-1/zarr.json", 0, 1)
        with pytest.raises(FileNotFoundError):
            storage.remove("space-1/segments/none")

    def test_what_was_created_reads_back(self, storage):
        assert storage.create("space-1/zarr.json", b"hello world")
        assert storage.exists("space-1/zarr.json")
        assert not storage.exists("space-1")
        assert not storage.exists("space-1/zarr")
        assert storage.read("space-1/zarr.json") == b"hello world"
        assert storage.sizes("space-1") == {"zarr.json": 11}

    def test_an_empty_file_is_a_file(self, storage):
        assert storage.create("space-1/empty", b"")
        assert storage.exists("space-1/empty")
        assert storage.read("space-1/empty") == b""
        assert storage.sizes("space-1") == {"empty": 0}

    @pytest.mark.parametrize(
        ("offset", "length", "expected"),
        [
            (0, 4, b"0123"),
            (3, 4, b"3456"),
            (8, 100, b"89"),
            (0, 10, b"0123456789"),
            (9, 1, b"9"),
            (4, 0, b""),
        ],
    )
    def test_a_range_is_at_most_its_length(self, storage, offset, length, expected):
        storage.create("space-1/data", b"0123456789")
        assert storage.read_range("space-1/data", offset, length) == expected

    def test_a_file_that_is_there_is_not_created_again(self, storage):
        assert storage.create("space-1/zarr.json", b"first")
        assert not storage.create("space-1/zarr.json", b"second")
        assert storage.read("space-1/zarr.json") == b"first"
        assert storage.sizes("space-1") == {"zarr.json": 5}

    def test_of_many_that_create_one_file_one_has_done_it(self, storage):
        def create(number):
            return storage.create("space-1/zarr.json", b"%d" % number)

        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(create, range(8)))
        assert made.count(True) == 1
        assert storage.read("space-1/zarr.json") == b"%d" % made.index(True)

    def test_a_published_folder_is_there_whole(self, storage):
        assert storage.publish(SEGMENT, FILES)
        assert storage.sizes(SEGMENT) == {name: len(data) for name, data in FILES.items()}
        for name, data in FILES.items():
            assert storage.read(join(SEGMENT, name)) == data
        assert storage.names("space-1/segments") == ["seg1"]

    def test_a_folder_that_is_there_is_not_published_again(self, storage):
        assert storage.publish(SEGMENT, FILES)
        assert not storage.publish(SEGMENT, {"zarr.json": b"other", "more": b"x"})
        assert storage.sizes(SEGMENT) == {name: len(data) for name, data in FILES.items()}
        assert storage.read(join(SEGMENT, "zarr.json")) == b"{}"

    def test_a_folder_whose_publishing_failed_is_not_visible(self, storage):
        broken = {**FILES, "b": "text where bytes are due"}
        with pytest.raises((TypeError, AttributeError, ValueError)):
            storage.publish(SEGMENT, dict(sorted(broken.items(), key=lambda item: item[0] != "b")))
        with pytest.raises((TypeError, AttributeError, ValueError)):
            storage.publish(SEGMENT, broken)
        assert storage.names("space-1/segments") == []
        assert not storage.exists(join(SEGMENT, "zarr.json"))
        assert storage.publish(SEGMENT, FILES)
        assert storage.names("space-1/segments") == ["seg1"]
        assert storage.read(join(SEGMENT, "a/c/0")) == FILES["a/c/0"]

    def test_names_are_the_visible_folders_directly_below_sorted(self, storage):
        for name in ("space-2", "space-10", "space-1"):
            storage.create(f"{name}/zarr.json", b"{}")
            storage.create(f"{name}/segments/zarr.json", b"{}")
        for name in ("b", "a"):
            storage.publish(f"space-1/segments/{name}", FILES)
        assert storage.names("") == ["space-1", "space-10", "space-2"]
        assert storage.names("space-1/segments") == ["a", "b"]
        assert storage.names("space-1") == ["segments"]
        assert storage.names("space-2/segments") == []

    def test_one_folder_is_not_taken_for_another_whose_name_goes_on(self, storage):
        storage.publish("space-1/segments/seg", FILES)
        storage.publish("space-1/segments/seg1", {"zarr.json": b"other"})
        assert storage.sizes("space-1/segments/seg") == {
            name: len(data) for name, data in FILES.items()
        }
        storage.remove("space-1/segments/seg")
        assert storage.names("space-1/segments") == ["seg1"]
        assert storage.read("space-1/segments/seg1/zarr.json") == b"other"

    def test_what_is_removed_is_gone_and_may_come_again(self, storage):
        storage.publish(SEGMENT, FILES)
        storage.publish("space-1/segments/seg2", FILES)
        storage.remove(SEGMENT)
        assert storage.names("space-1/segments") == ["seg2"]
        with pytest.raises(FileNotFoundError):
            storage.sizes(SEGMENT)
        with pytest.raises(FileNotFoundError):
            storage.read(join(SEGMENT, "manifest.json"))
        assert storage.publish(SEGMENT, FILES)
        assert storage.names("space-1/segments") == ["seg1", "seg2"]

    def test_a_files_time_is_when_it_was_written(self, storage):
        before = time.time()
        storage.create("space-1/zarr.json", b"{}")
        assert before - 2 <= storage.modified("space-1/zarr.json") <= time.time() + 2

    def test_a_sweep_takes_what_never_became_visible_and_nothing_else(self, storage):
        storage.publish(SEGMENT, FILES)
        storage.create("space-1/zarr.json", b"{}")
        temporary = isinstance(storage, LocalStorage)
        stray = "space-1/segments/" + (".tmp-otherhost-17-abc" if temporary else "seg9")
        put(storage, f"{stray}/a/c/0", b"half")
        assert storage.names("space-1/segments") == ["seg1"]
        assert storage.sweep("space-1") == []
        assert storage.sweep("space-1", 3600.0) == []
        assert storage.read(f"{stray}/a/c/0") == b"half"
        assert storage.sweep("space-1", -1.0) == [stray]
        with pytest.raises(FileNotFoundError):
            storage.sizes(stray)
        assert storage.sweep("space-1", -1.0) == []
        assert storage.sizes(SEGMENT) == {name: len(data) for name, data in FILES.items()}
        assert storage.read("space-1/zarr.json") == b"{}"

    def test_a_sweep_of_nothing_is_nothing(self, storage):
        assert storage.sweep("space-1") == []


def test_parts_are_joined_without_empty_ones():
    assert join("a", "", "b", "c/d") == "a/b/c/d"
    assert join("", "") == ""


def test_a_location_is_a_folder_or_a_url(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    home = open_storage("~/store")
    assert isinstance(home, LocalStorage)
    assert home.location == str(tmp_path / "store")
    assert isinstance(open_storage("memory:///x/"), ObjectStorage)
    assert open_storage("memory:///x/").location == "memory:///x"


def test_a_folder_is_flushed_to_disk_before_it_is_visible(tmp_path, monkeypatch):
    flushed, real = [], os.fsync
    target = tmp_path / "store" / SEGMENT

    def fsync(descriptor):
        flushed.append((os.fstat(descriptor).st_ino, target.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert open_storage(tmp_path / "store").publish(SEGMENT, FILES)
    for path in (target, *target.rglob("*")):  # files, and folders with their names
        assert (path.stat().st_ino, False) in flushed, path
    assert flushed[-1] == (target.parent.stat().st_ino, True)


def test_a_file_that_an_nfs_client_still_holds_open_is_no_part_of_a_segment(tmp_path):
    """The client renames what is removed under a reader to .nfs and a number, until it closes."""
    storage = open_storage(tmp_path / "store")
    assert storage.publish(SEGMENT, FILES)
    (tmp_path / "store" / SEGMENT / "a" / "c" / ".nfs00000000019c2b1e00000001").write_bytes(b"0")
    assert storage.sizes(SEGMENT) == {name: len(data) for name, data in FILES.items()}


def test_a_connection_is_not_used_after_a_fork(monkeypatch):
    storage = open_storage("memory:///x")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(UserError, match="does not survive a fork"):
        storage.read("x")
