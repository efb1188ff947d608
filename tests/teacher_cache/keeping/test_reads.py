"""What the commands that keep a store read of it, by count of files and bytes."""

from collections import Counter

import pytest

from shared.targets.namespace import quarantine, quarantined
from shared.targets.storage import LocalStorage
from teacher_cache.keeping.gc import gc
from teacher_cache.keeping.merge import merge
from tests.fixtures.targets import identity, key, write_records

pytestmark = pytest.mark.unit


class Counted(LocalStorage):
    """A folder that counts how often each file is read, whole or in part."""

    def __init__(self, root):
        super().__init__(root)
        self.reads: Counter[str] = Counter()

    def read(self, path):
        self.reads[path] += 1
        return super().read(path)

    def read_range(self, path, offset, length):
        self.reads[path] += 1
        return super().read_range(path, offset, length)

    def shards(self):
        """Reads of the large files: what most of a store's bytes are."""
        return {path: count for path, count in self.reads.items() if "/similarity/c/" in path}


@pytest.fixture
def store(tmp_path):
    write_records(tmp_path / "store", range(8), segment_records=2)
    return Counted(tmp_path / "store")


@pytest.mark.parametrize("dry_run", [False, True])
def test_sweeping_a_stray_reads_no_shard(store, dry_run):
    namespace = identity().namespace()
    stray = store.root / namespace / "segments/.tmp-elsewhere-1-0"
    stray.mkdir()
    [swept] = gc(store, older_than=-1, dry_run=dry_run)
    assert bool(swept.strays) == (not dry_run)
    assert store.reads
    assert not store.shards()


def test_only_segments_that_share_a_record_are_read_whole(store):
    write_records(store, [7, 8], segment_records=2)
    [swept] = gc(store, dry_run=True)
    assert swept.records == 1
    assert len(store.shards()) == 2


def test_a_merge_reads_each_shard_once(store, tmp_path):
    [merged] = merge([store], tmp_path / "other")
    assert merged.segments == 4
    assert list(store.shards().values()) == [1] * 4


def test_gc_ends_the_quarantine_of_an_image_that_has_a_target(store):
    namespace = write_records(store, [])
    for number in (0, 20):  # one that was left out before it was encoded, and one that still is
        quarantine(namespace, key(number), "it could not be read")
    [dry] = gc(store, dry_run=True)
    assert dry.released == 0
    assert len(list(quarantined(namespace))) == 2
    [swept] = gc(store)
    assert swept.released == 1
    assert [one.key for one in quarantined(namespace)] == [key(20)]
