"""Compaction: fewer segments, the same bytes; whatever ends it half way loses no record."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from typer.testing import CliRunner

from shared.targets import TargetStore
from shared.targets.catalogue import publish_catalogue
from shared.targets.namespace import Namespace, catalogue_files, list_namespaces
from shared.targets.segment.layout import SEGMENT_RECORDS
from shared.targets.segment.scan import scan
from shared.targets.storage import open_storage
from teacher_cache.cli import app
from teacher_cache.keeping.gc import gc
from tests.fixtures.interleaving import interleave
from tests.fixtures.memory_storage import MemoryStorage
from tests.fixtures.targets import (
    factors_record,
    key,
    matrix_record,
    patches_record,
    write_factors,
    write_records,
)

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))


STORES: dict[str, Any] = {
    "matrix": (matrix_record, {}),
    "steps": (matrix_record, {"precision": "u8"}),
    "factors": (factors_record, {"encoding": "factors", "tolerance": 0.01}),
    "patches": (patches_record, {"encoding": "patches", "width": 6, "rotation": "hadamard"}),
}


SHARDED = ("similarity", "attention", "coverage", "patches")


def chunks_of(namespace: Namespace) -> dict[bytes, dict[str, bytes]]:
    """Return the bytes that lie in the store for each record, as zarr's own shard index says."""
    found: dict[bytes, dict[str, bytes]] = {}
    for segment in namespace.segments():
        files = {
            name: namespace.storage.read(namespace.path("segments", segment, name))
            for name in namespace.storage.sizes(namespace.path("segments", segment))
        }
        rows = np.frombuffer(files["key/c/0/0"][:-4], np.uint8).reshape(-1, 32)
        for name, data in files.items():
            array = name.partition("/")[0]
            if array not in SHARDED or name.endswith("zarr.json"):
                continue
            index = np.frombuffer(data[-16 * len(rows) - 4 : -4], "<u8").reshape(-1, 2)
            for row, (begin, length) in zip(rows, index.tolist(), strict=True):
                found.setdefault(row.tobytes(), {})[array] = data[begin : begin + length]
    return found


@pytest.mark.parametrize("encoding", STORES)
def test_thirty_builds_of_one_image_leave_one_segment_of_the_same_bytes(tmp_path, encoding):
    record, changes = STORES[encoding]
    for number in range(30):
        namespace = write_records(tmp_path / "store", [number], record=record, **changes)
    before, arrays = chunks_of(namespace), TargetStore.open(tmp_path / "store")
    values = arrays.arrays([key(number) for number in range(30)])
    identity_file = namespace.storage.read(namespace.path("zarr.json"))
    assert len(namespace.segments()) == 30
    [foretold] = gc(tmp_path / "store", compacting=True, dry_run=True)
    assert len(namespace.segments()) == 30
    [swept] = gc(tmp_path / "store", compacting=True)
    assert (swept.compacted, swept.written) == (foretold.compacted, foretold.written) == (30, 1)
    assert len(namespace.segments()) == 1
    assert chunks_of(namespace) == before
    assert namespace.storage.read(namespace.path("zarr.json")) == identity_file
    assert not [one.damage for one in scan(tmp_path / "store") if one.damage]
    after = TargetStore.open(tmp_path / "store").arrays([key(number) for number in range(30)])
    for name, expected in values.items():
        np.testing.assert_array_equal(after[name], expected)
    assert gc(tmp_path / "store", compacting=True)[0].compacted == 0


def test_factors_of_different_widths_keep_their_values(tmp_path):
    write_factors(tmp_path / "store", 6)  # segments of three, each as wide as its widest
    keys = [key(number) for number in range(6)]
    before = TargetStore.open(tmp_path / "store", grid=(5, 5)).batch(keys)
    [swept] = gc(tmp_path / "store", compacting=True)
    assert (swept.compacted, swept.written) == (2, 1)
    after = TargetStore.open(tmp_path / "store", grid=(5, 5)).batch(keys)
    np.testing.assert_array_equal(before.similarity, after.similarity)


def test_only_what_fills_less_than_half_is_written_anew(tmp_path):
    half = SEGMENT_RECORDS // 2
    sizes = [half, half - 1, half - 1, 7]
    numbers = iter(range(sum(sizes)))
    for size in sizes:
        some = [next(numbers) for _ in range(size)]
        namespace = write_records(tmp_path / "store", some, segment_records=half)
    full, *_, last = namespace.segments()
    [swept] = gc(tmp_path / "store", compacting=True)
    assert (swept.compacted, swept.written) == (2, 1)  # three are more than one segment
    assert {full, last} < set(namespace.segments())
    assert gc(tmp_path / "store", compacting=True)[0].compacted == 0
    assert len(TargetStore.open(tmp_path / "store")) == sum(sizes)


def holds(store, numbers, record=matrix_record):
    for number in numbers:
        values = record(number)["similarity"]
        np.testing.assert_array_equal(store[key(number)].similarity, values)


def test_readers_that_hold_the_old_segments_go_on(tmp_path):
    for first in range(0, 12, 2):
        write_records(tmp_path / "store", [first, first + 1])
    opened, read = (TargetStore.open(tmp_path / "store") for _ in range(2))
    holds(read, range(12))  # has every segment open
    walk = opened.by_segment()
    seen = next(walk)
    gc(tmp_path / "store", compacting=True)
    write_records(tmp_path / "store", [20, 21])  # the index that is opened anew has more
    for store in (opened, read):
        holds(store, range(12))
    for group in walk:
        seen += group
    assert sorted(seen) == sorted(key(number) for number in range(12))


class Killed(BaseException):
    """The process is gone: nothing runs after it, no clean-up either."""


class Steps:
    """Counts operations, and dies at one."""

    def __init__(self, step=None):
        self.step, self.done = step, 0

    def __call__(self):
        if self.done == self.step:
            raise Killed
        self.done += 1


def dying_at_flushes(monkeypatch, steps):
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: (steps(), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "rename", lambda self, to: (steps(), rename(self, to))[1])
    monkeypatch.setattr(shutil, "rmtree", cast("Any", lambda *_, **__: None))


def dying_at_objects(monkeypatch, steps):
    from zarr.storage import ObjectStore

    for name in ("set", "delete"):
        original = getattr(ObjectStore, name)

        async def counted(self, *arguments, _original=original):
            steps()
            return await _original(self, *arguments)

        monkeypatch.setattr(ObjectStore, name, counted)


PLACES = {"folder": dying_at_flushes, "objects": dying_at_objects}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("stride", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_each_step_loses_nothing(tmp_path, monkeypatch, place, stride):
    """After each kill all is read by a fresh reader, and by one from before; then gc ends it."""

    def made(name):
        root = tmp_path / name if place == "folder" else f"memory:///{stride}-{name}"
        storage = open_storage(root)
        for first in range(0, 9, 3):
            write_records(storage, range(first, first + 3))
        return storage

    def run(storage, steps):
        with monkeypatch.context() as patched:
            PLACES[place](patched, steps)
            gc(storage, compacting=True)

    counting = Steps()
    run(made("counted"), counting)
    assert counting.done > 10
    for step in range(stride // 2, counting.done, stride):
        storage = made(str(step))
        before = TargetStore.open(storage)
        with pytest.raises(Killed):
            run(storage, Steps(step))
        (namespace,) = list_namespaces(storage)
        holds(TargetStore.open(storage), range(9))
        holds(before, range(9))
        storage.discard(namespace.path(".lease"))  # an hour later
        gc(storage, compacting=True)
        assert len(namespace.segments()) == 1
        holds(TargetStore.open(storage), range(9))
        holds(before, range(9))
        assert not [one.damage for one in scan(storage) if one.damage]


LIMITED = """
import resource, signal, sys
from shared.errors import UserError
from teacher_cache.keeping.gc import gc
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    gc(sys.argv[1], compacting=True)
except UserError as error:
    print(error)
    sys.exit(1)
"""


def test_a_full_disk_leaves_all_as_it_was(tmp_path):
    """The system refuses to write on in the middle of a file, as a full disk does."""
    for first in range(0, 60, 5):
        namespace = write_records(tmp_path / "store", range(first, first + 5), segment_records=5)
    before = namespace.segments()
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "store")]
    result = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stderr
    assert "cannot change the store" in result.stdout
    assert "make room or restore write access, and run gc again" in result.stdout
    assert namespace.segments() == before
    assert not [one.damage for one in scan(tmp_path / "store") if one.damage]
    assert not list((tmp_path / "store").rglob(".tmp-*"))
    [swept] = gc(tmp_path / "store", compacting=True)  # there is room again
    assert (swept.compacted, swept.written) == (12, 1)
    holds(TargetStore.open(tmp_path / "store"), range(60))


def test_a_damaged_segment_stays_as_it_is_and_the_others_are_compacted(tmp_path):
    for number in range(4):
        namespace = write_records(tmp_path / "store", [number])
    broken = namespace.segments()[1]
    shard = tmp_path / "store" / namespace.path("segments", broken, "similarity/c/0/0")
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    [swept] = gc(tmp_path / "store", compacting=True)
    assert (swept.compacted, swept.written) == (3, 1)
    assert broken in namespace.segments()
    assert len([one.damage for one in scan(tmp_path / "store") if one.damage]) == 1


@pytest.mark.parametrize("locks", [True, False])
def test_beside_builds_and_another_one(locks):
    """Every reader that is open finds every record at every moment."""
    for seed in range(8):
        store = MemoryStorage(f"compact{seed}{locks}", locks)
        for number in range(6):
            namespace = write_records(store, [number])
        opened = TargetStore.open(store)
        compacted = partial(gc, store, compacting=True)

        def read(opened=opened):
            for _ in range(3):
                holds(opened, range(6))

        build = partial(write_records, store, [5, 6, 7, 8], segment_records=1)
        outcomes = interleave(seed, MemoryStorage, compacted, compacted, build, read)
        assert not [one for one in outcomes if isinstance(one, Exception)]
        holds(TargetStore.open(store), range(9))
        compacted()
        assert len(namespace.segments()) == 1
        holds(TargetStore.open(store), range(9))


def test_a_catalogue_of_removed_segments_is_discarded(tmp_path):
    """A build writes it between the moment `gc` discards them and the moment segments go."""
    for number in range(20):
        namespace = write_records(tmp_path / "store", [number])
    assert publish_catalogue(namespace) is not None
    [(name, _)] = catalogue_files(namespace).items()
    data = namespace.storage.read(namespace.path("catalogue", name))
    gc(tmp_path / "store", compacting=True)
    namespace.storage.create(namespace.path("catalogue", name), data)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    holds(TargetStore.open(tmp_path / "store"), range(20))
    publish_catalogue(namespace)
    assert name not in catalogue_files(namespace)


def test_format_1_is_upgraded_first(tmp_path):
    for number in range(3):
        old = write_records(tmp_path / "store", [number], format=1)
    line = ["gc", "--compact", "--store", str(tmp_path / "store")]
    refused = CliRunner().invoke(app, line)
    assert refused.exit_code != 0
    assert "cache upgrade --remove" in str(refused.exception)
    assert len(old.segments()) == 3
    upgrade = ["upgrade", "--remove", "--store", str(tmp_path / "store")]
    assert CliRunner().invoke(app, upgrade).exit_code == 0
    compacted = CliRunner().invoke(app, line)
    assert compacted.exit_code == 0
    assert "3 small segments became 1" in compacted.output
    holds(TargetStore.open(tmp_path / "store"), range(3))
