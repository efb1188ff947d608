"""Files and folders of others in a store, other teachers' damage, and places that lack a call."""

import errno
import os

import pytest

from shared.errors import UserError
from shared.targets import TargetStore
from shared.targets.namespace import list_namespaces, quarantined, survey
from shared.targets.segment.scan import scan
from shared.targets.storage import open_storage
from teacher_cache.keeping.gc import gc
from teacher_cache.keeping.info import info
from teacher_cache.keeping.merge import merge
from tests.fixtures.targets import key, write_records

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))


def test_foreign_files_are_told_apart_and_harm_nothing(tmp_path):
    root = tmp_path / "store"
    namespace = write_records(root, range(6), segment_records=3)
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        (folder / ".DS_Store").write_bytes(b"x")
        (folder / "Thumbs.db").write_bytes(b"x")
        (folder / "@eaDir").mkdir()
        (folder / "@eaDir" / "zarr.json").write_bytes(b"{}")
    checked = list(scan(root))
    assert not [one.damage for one in checked if one.damage]
    assert len([path for one in checked for path in one.foreign if "DS_Store" in path]) >= 2
    assert any(path.endswith("segments/@eaDir") for one in checked for path in one.foreign)
    (swept,) = gc(root, damaged=True)
    assert (swept.damaged, swept.superseded) == ([], [])
    assert len(TargetStore.open(root)) == 6
    assert not list(quarantined(namespace))
    assert merge([root], tmp_path / "other")[0].records == 6
    assert info(root)[0]["damaged"] == []


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff", b'{"attributes": {"medalign": {}}}', None]
)
def test_one_teachers_damage_shuts_out_no_other(tmp_path, content):
    root = tmp_path / "store"
    write_records(root, range(3))
    broken = write_records(root, range(3), teacher="other")
    if content is None:
        (root / broken.name / "zarr.json").unlink()
    else:
        (root / broken.name / "zarr.json").write_bytes(content)
    assert len(TargetStore.open(root)) == 3
    assert [one.identity.teacher for one in list_namespaces(root)] == ["dinov2-small"]
    assert list(survey(root).unreadable) == [broken.name]
    assert len(gc(root)) == len(info(root)) == len(merge([root], tmp_path / "copy")) == 1
    assert [one.path for one in scan(root) if one.damage] == [f"{broken.name}/zarr.json"]
    with pytest.raises(UserError, match=broken.name):
        TargetStore.open(root, teacher="other")


@pytest.mark.parametrize("call", ["link", "fsync", "flock"])
@pytest.mark.parametrize(
    "number", [errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL, errno.EIO]
)
def test_a_place_that_lacks_a_call_works_or_says_so_in_one_line(
    tmp_path, monkeypatch, call, number
):
    import fcntl

    def refused(*arguments, **options):
        raise OSError(number, os.strerror(number))

    real = os.fsync

    def refused_for_folders(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            refused()
        real(descriptor)

    if call == "flock":
        monkeypatch.setattr(fcntl, "flock", refused)
    else:
        monkeypatch.setattr(os, call, refused if call == "link" else refused_for_folders)
    fails = number == errno.EIO or (call == "fsync" and number in (errno.EXDEV, errno.EPERM))
    if call != "flock" and fails:
        with pytest.raises(UserError, match="cannot write to the store"):
            write_records(tmp_path / "store", range(3))
        return
    write_records(tmp_path / "store", range(3))
    write_records(tmp_path / "store", range(2, 5))
    assert gc(tmp_path / "store")[0].records == 1
    assert len(TargetStore.open(tmp_path / "store")) == 5
    assert not [one.damage for one in scan(tmp_path / "store") if one.damage]


@pytest.mark.parametrize("location", ["memory://", "memory:///"])
def test_memory_is_a_place(location):
    storage = open_storage(location)
    write_records(storage, range(2))
    assert list(survey(storage).readable)


def test_an_age_that_could_cut_an_upload_is_refused():
    storage = open_storage("memory:///store")
    write_records(storage, range(2))
    with pytest.raises(UserError, match="use 1 hours or more"):
        gc(storage, older_than=60)


def test_an_upload_that_a_sweep_cuts_is_made_again(monkeypatch):
    """The builder never reports a segment of which objects are gone."""
    from shared.targets.storage.objects import ObjectStorage

    storage = open_storage("memory:///store")
    listed, cuts = ObjectStorage._sizes, []

    def cut(self, folder):
        if "/segments/" in folder and not cuts:
            cuts.append(folder)
            self._store.store.delete(f"{folder}/manifest.json")
        return listed(self, folder)

    monkeypatch.setattr(ObjectStorage, "_sizes", cut)
    write_records(storage, range(2))
    assert cuts
    assert not [one.damage for one in scan(storage) if one.damage]


def test_an_upload_that_is_cut_each_time_says_so(monkeypatch):
    from shared.targets.storage.objects import ObjectStorage

    storage = open_storage("memory:///store")
    listed = ObjectStorage._sizes

    def lacking(self, folder):
        return {
            name: size for name, size in listed(self, folder).items() if name != "manifest.json"
        }

    namespace = write_records(storage, [])
    monkeypatch.setattr(ObjectStorage, "_sizes", lacking)
    with pytest.raises(OSError, match="vanish while they are written"):
        storage.publish(namespace.path("segments", "ab" * 16), {"manifest.json": b"m", "a/0": b"0"})


def test_a_merge_brings_no_quarantine_of_an_image_that_is_there(tmp_path):
    from shared.targets.namespace import quarantine

    quarantine(write_records(tmp_path / "a", range(2)), key(5), "not finite")
    into = write_records(tmp_path / "b", [5])
    merge([tmp_path / "a"], tmp_path / "b")
    assert not list(quarantined(into))
