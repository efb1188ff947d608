"""Copies of a bucket's segments on this machine: bounded, shared, whole or not taken."""

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import UserError
from shared.targets import TargetStore
from shared.targets.segment.copies import Copies, copies_for
from shared.targets.storage import open_storage
from teacher_cache.keeping.gc import gc
from teacher_cache.keeping.merge import merge
from tests.fixtures.proxy import counted_bucket
from tests.fixtures.targets import (
    factors_record,
    key,
    matrix_record,
    patches_record,
    write_records,
)

pytestmark = pytest.mark.integration
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "matrix": (matrix_record, {}),
    "factors": (factors_record, {"encoding": "factors", "tolerance": 0.01}),
    "patches": (patches_record, {"encoding": "patches", "width": 6, "rotation": "hadamard"}),
    "format 1": (matrix_record, {"format": 1}),
}


@pytest.fixture(scope="module")
def bucket():
    with counted_bucket() as proxy:
        yield proxy


@pytest.fixture
def root(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))
    return f"s3://bucket/{uuid.uuid4().hex}"


def assert_holds(store, numbers, record=matrix_record):
    arrays = store.arrays([key(number) for number in numbers])
    for row, number in enumerate(numbers):
        for name, values in record(number).items():
            np.testing.assert_array_equal(arrays[name][row], values)


def copied(tmp_path):
    return sorted(path for path in (tmp_path / "cache/segments").rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_read_once_is_not_asked_for_again(bucket, root, tmp_path, kind):
    record, changes = KINDS[kind]
    write_records(root, range(8), record=record, **changes)
    assert_holds(TargetStore.open(root), [1, 2, 6], record)
    again = TargetStore.open(root)  # as another process: it keeps nothing of the first
    bucket.requests = 0
    assert_holds(again, [6, 1], record)
    if kind != "format 1":  # which has no one object that opens a segment
        assert bucket.requests == 0
    bucket.requests = 0
    assert_holds(again, [3], record)
    assert bucket.requests == sum(np.ndim(values) > 0 for values in record(0).values()) - (
        2 if kind == "factors" else 1 if kind == "patches" else 0
    )  # one range an array; small ones are there whole
    assert_holds(again, range(8), record)


@pytest.mark.parametrize("kind", ["matrix", "factors", "patches"])
def test_a_damaged_copy_is_never_taken_and_is_mended(bucket, root, tmp_path, kind):
    record, changes = KINDS[kind]
    write_records(root, range(4), record=record, **changes)
    assert_holds(TargetStore.open(root), range(4), record)
    files = copied(tmp_path)
    assert len(files) == 1 + len(record(0))
    generator = np.random.default_rng(0)
    for path in files:
        whole = path.read_bytes()
        end = b"\n" if path.name == "manifest.json" else b""  # its digest is not over the end
        hole = whole[: len(whole) // 3] + bytes(len(whole) // 3) + whole[2 * (len(whole) // 3) :]
        flips = []
        for place in generator.integers(0, len(whole), 6).tolist():
            flipped = bytearray(whole)
            flipped[place] ^= 1 << int(generator.integers(8))
            flips.append(bytes(flipped))
        for damaged in (*flips, hole, whole[:-1], whole[: len(whole) // 2], b"", whole + b"x"):
            path.write_bytes(damaged)
            assert_holds(TargetStore.open(root), range(4), record)
            assert path.read_bytes()[: len(whole)].rstrip(end) == whole.rstrip(end)
        path.unlink()
        assert_holds(TargetStore.open(root), range(4), record)
        assert path.read_bytes() == whole


def test_the_bound_holds_and_the_last_used_stay(tmp_path):
    copies = Copies(tmp_path / "copies", 200_000)
    first = tmp_path / "copies" / f"{0:020x}"
    for number in range(40):
        copies.write(f"{number:020x}", "similarity", 50_000_000, bytes([number]) * 20_000)
        os.utime(tmp_path / "copies" / f"{number:020x}", ns=(10 * number,) * 2)
        assert copies.read(first.name, "similarity", 50_000_000, 20_000) == bytes(20_000)
        assert first.stat().st_mtime_ns > 10**9  # now: it was read
        os.utime(first, ns=(10 * number + 5,) * 2)
        used = sum(512 * one.stat().st_blocks for one in (tmp_path / "copies").rglob("*"))
        assert used <= 200_000 + 24_576  # the one just written, in whole blocks
    newest = copies.read(f"{39:020x}", "similarity", 50_000_000, 20_000)
    assert newest == bytes([39]) * 20_000
    assert copies.read(f"{7:020x}", "similarity", 50_000_000, 10) == b""


READER = """
import random, sys
from pathlib import Path
import numpy as np
from shared.targets import TargetStore
from tests.fixtures.targets import key, matrix_record
root, seed = sys.argv[1], int(sys.argv[2])
store = TargetStore.open(root)
order = list(range(64)) * 2
random.Random(seed).shuffle(order)
for number in order:
    found = store[key(number)].similarity
    np.testing.assert_array_equal(found, matrix_record(number)["similarity"])
"""


def test_many_processes_share_copies_within_the_bound(root, tmp_path, monkeypatch):
    write_records(root, range(64), segment_records=4)  # 16 segments of 4 files, 4 kB at least
    monkeypatch.setenv("MEDALIGN_CACHE_GB", "100e-6")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", READER, root, str(seed)], cwd=Path(__file__).parents[3]
        )
        for seed in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    Copies(tmp_path / "cache/segments", 100_000).trim()
    used = sum(512 * path.stat().st_blocks for path in copied(tmp_path))
    assert 0 < used <= 100_000
    assert_holds(TargetStore.open(root), range(64))


def test_copies_go_by_content_not_by_place(bucket, root, tmp_path):
    """What was pushed elsewhere is the same; a segment that `gc` removed is not in the index."""
    namespace = write_records(root, range(4))
    assert_holds(TargetStore.open(root), range(4))
    other = f"{root}-other"
    merge([root], other)
    store = TargetStore.open(other)
    bucket.requests = 0
    assert_holds(store, range(4))
    assert bucket.requests == 0
    write_records(root, range(4, 6))
    gc(root, compacting=True)
    assert len(namespace.segments()) == 1
    assert_holds(TargetStore.open(root), range(6))


def test_none_are_kept_where_none_are_wanted(root, tmp_path, monkeypatch):
    write_records(root, range(4))
    monkeypatch.setenv("MEDALIGN_CACHE_GB", "0")
    assert_holds(TargetStore.open(root), range(4))
    assert not copied(tmp_path)
    monkeypatch.delenv("MEDALIGN_CACHE_GB")
    write_records(tmp_path / "store", range(4))
    assert_holds(TargetStore.open(tmp_path / "store"), range(4))
    assert not copied(tmp_path)  # a folder is near


@pytest.mark.parametrize("given", ["much", "-1", "inf", "nan", "1 GB"])
def test_a_limit_that_is_no_number_is_named(root, monkeypatch, given):
    monkeypatch.setenv("MEDALIGN_CACHE_GB", given)
    with pytest.raises(UserError, match="MEDALIGN_CACHE_GB is a number of gigabytes"):
        copies_for(open_storage(root))


def test_reading_goes_on_where_copies_cannot_be_written(root, tmp_path):
    write_records(root, range(4))
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache/segments").write_text("a file where the folder should be")
    assert_holds(TargetStore.open(root), range(4))


FULL = """
import resource, signal, sys
from shared.targets import TargetStore
from tests.fixtures.targets import key, matrix_record
store = TargetStore.open(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
for number in range(16):
    assert (store[key(number)].similarity == matrix_record(number)["similarity"]).all()
"""


def test_reading_goes_on_where_the_disk_is_full(root, tmp_path):
    """The system refuses to write on in the middle of a file, as a full disk does."""
    write_records(root, range(16), segment_records=16)
    TargetStore.open(root)
    command = [sys.executable, "-c", FULL, root]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])
    assert_holds(TargetStore.open(root), range(16))
