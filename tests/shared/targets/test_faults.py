"""Faults injected for real.

Damaged files of every kind, kills, a full disk, lost write access, strays, clock skew.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import UserError
from shared.targets import TargetStore, TargetWriter
from shared.targets.namespace import list_namespaces, quarantine, quarantined
from shared.targets.segment.checks import keys_present
from shared.targets.segment.layout import arrays_of
from shared.targets.segment.scan import scan
from shared.targets.storage.local import temporary_folder
from teacher_cache.keeping.gc import gc
from teacher_cache.keeping.info import info
from teacher_cache.keeping.merge import merge
from tests.fixtures.targets import (
    ASKED,
    asked_record,
    factors_record,
    identity,
    key,
    matrix_record,
    patches_record,
    write_records,
)

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))


def damages(root):
    return [checked.damage for checked in scan(root) if checked.damage]


def read_all(root, numbers, record=matrix_record):
    """Read every record of a freshly opened store and compare.

    True where each is what was written.
    """
    store = TargetStore.open(root)
    if len(store) != len(numbers):
        return False
    arrays = store.arrays([key(number) for number in numbers])
    return all(
        np.array_equal(arrays[name][row], values)
        for row, number in enumerate(numbers)
        for name, values in record(number).items()
    )


def make(root, record=matrix_record, **changes):
    namespace = write_records(root, range(6), segment_records=3, record=record, **changes)
    quarantine(namespace, key(77), "truncated")
    return namespace


def flip(data, generator):
    damaged = bytearray(data)
    damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    return bytes(damaged)


FAULTS = {
    "flip": flip,
    "truncate": lambda data, generator: data[: generator.randrange(1, len(data))],
    "empty": lambda data, generator: b"",
    "missing": lambda data, generator: None,
    "grown": lambda data, generator: data + b"\0",
}


STORES: dict[str, Any] = {
    "matrix": (matrix_record, {}),
    "factors": (factors_record, {"encoding": "factors", "tolerance": 0.01}),
    "patches": (patches_record, {"encoding": "patches", "width": 6, "rotation": "hadamard"}),
    "asked": (asked_record, ASKED),
    "matrix 1": (matrix_record, {"format": 1}),
    "factors 1": (factors_record, {"encoding": "factors", "tolerance": 0.01, "format": 1}),
}


@pytest.mark.parametrize("encoding", STORES)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_damage_to_every_kind_of_file_is_detected(tmp_path, fault, encoding):
    """`scan` finds all of it; so does reading everything, but for what reading never touches.

    Since format 2 that is what zarr alone needs (its metadata, keys, indexes of shards): records
    are then read as they were written.
    """
    generator = random.Random(fault)
    record, changes = STORES[encoding]
    namespace = make(tmp_path / "store", record, **changes)
    assert not damages(tmp_path / "store")
    assert read_all(tmp_path / "store", range(6), record)
    files = sorted(path for path in (tmp_path / "store").rglob("*") if path.is_file())
    arrays = {spec.name for spec in arrays_of(namespace.identity)}
    assert {path.name for path in files} >= {"zarr.json", "manifest.json", "0"}
    assert {
        path.relative_to(tmp_path / "store").parts[3] for path in files if "c" in path.parts
    } == arrays
    undetected = []
    for path in files:
        original = path.read_bytes()
        in_quarantine = "quarantine" in path.parts and path.name != "zarr.json"
        for _ in range(6 if fault in ("flip", "truncate") else 1):
            damaged = FAULTS[fault](original, generator)
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
            if not (in_quarantine and fault == "missing") and not damages(tmp_path / "store"):
                undetected.append((path, "scan"))
            if not in_quarantine:
                try:
                    whole = read_all(tmp_path / "store", range(6), record)
                except UserError:
                    continue
                assert whole, path
                assert namespace.identity.format == 2, path
        path.write_bytes(original)
    assert not undetected
    assert read_all(tmp_path / "store", range(6), record)


def test_a_flip_that_a_read_does_not_touch_harms_no_other_record(tmp_path):
    namespace = write_records(tmp_path / "store", range(6), segment_records=6)
    (segment,) = namespace.segments()
    shard = tmp_path / "store" / namespace.path("segments", segment, "similarity/c/0/0")
    original = shard.read_bytes()
    for place in range(0, len(original) - 100, 37):
        damaged = bytearray(original)
        damaged[place] ^= 4
        shard.write_bytes(bytes(damaged))
        store = TargetStore.open(tmp_path / "store")
        failures = 0
        for number in range(6):
            try:
                np.testing.assert_array_equal(
                    store[key(number)].similarity, matrix_record(number)["similarity"]
                )
            except UserError:
                failures += 1
        assert failures == 1


def test_a_damaged_segment_is_dropped_and_built_again(tmp_path):
    namespace = make(tmp_path / "store")
    segment = namespace.segments()[0]
    shard = tmp_path / "store" / namespace.path("segments", segment, "attention/c/0/0")
    shard.write_bytes(shard.read_bytes()[:-1])
    present, damaged = keys_present(namespace)
    assert len(present) == 3
    assert len(damaged) == 1
    (swept,) = gc(tmp_path / "store", damaged=True)
    assert swept.damaged == [segment]
    write_records(tmp_path / "store", [number for number in range(6) if key(number) not in present])
    assert read_all(tmp_path / "store", range(6))
    assert not damages(tmp_path / "store")


WRITER = """
import sys
from pathlib import Path
from tests.fixtures.progress import Countdown, at_file_operations
from tests.fixtures.targets import key, write_records
from shared.targets.segment.checks import keys_present
root, first, last, size, step = Path(sys.argv[1]), *map(int, sys.argv[2:6])
at_file_operations(root, Countdown(step))
namespace = write_records(root, [])
present, damaged = keys_present(namespace)
assert not damaged
write_records(root, [n for n in range(first, last) if key(n) not in present], segment_records=size)
"""


def writer(root, first, last, size=2, step=-1):
    """Start a process that writes records; it dies at its `step`-th file operation."""
    command = [sys.executable, "-c", WRITER, *map(str, (root, first, last, size, step))]
    return subprocess.Popen(command, cwd=Path(__file__).parents[3])


def killed_at_random(root, kills, seed):
    """Kill a writer `kills` times, each time start it again.

    Every time what is visible is whole.
    """
    generator = random.Random(seed)
    seen = set()
    for _ in range(kills):
        process = writer(root, 0, 3000, step=generator.randrange(400))  # of tens of thousands
        assert process.wait() == -signal.SIGKILL
        if not list(Path(root).glob("*/zarr.json")):
            continue
        (namespace,) = list_namespaces(root)
        present, damaged = keys_present(namespace)
        assert not damaged
        assert seen <= present
        seen = present
        if list(Path(root).glob("*/quarantine/zarr.json")):  # written last of a new namespace
            assert not damages(root)
    numbers = [number for number in range(len(seen) * 2 + 10) if key(number) in seen]
    assert len(numbers) == len(seen) > 0
    assert read_all(root, numbers)
    write_records(root, [])  # a build sweeps its own host's strays
    assert not list(Path(root).rglob(".tmp-*"))


def test_kill_a_writer_a_few_times(tmp_path):
    killed_at_random(tmp_path / "store", 4, seed=1)


@pytest.mark.slow
def test_kill_a_writer_sixty_times(tmp_path):
    killed_at_random(tmp_path / "store", 60, seed=2)


def test_two_writers_at_once(tmp_path):
    both = [writer(tmp_path / "store", 0, 30, size=3), writer(tmp_path / "store", 10, 40, size=4)]
    for process in both:
        assert process.wait() == 0
    assert not damages(tmp_path / "store")
    assert read_all(tmp_path / "store", range(40))
    gc(tmp_path / "store")
    assert read_all(tmp_path / "store", range(40))


LIMITED = """
import resource, signal, sys
from pathlib import Path
from shared.console import UserError
from tests.fixtures.targets import write_records
root = Path(sys.argv[1])
write_records(root, range(3))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    write_records(root, range(3, 60), segment_records=50)
except UserError as error:
    print(error)
    sys.exit(1)
"""


def test_a_write_that_fails_half_way(tmp_path):
    """The system refuses to write on in the middle of a file, as a full disk does."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "store")]
    result = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stderr
    assert "cannot write to the store" in result.stdout
    assert "run the same build again" in result.stdout
    assert not damages(tmp_path / "store")
    assert read_all(tmp_path / "store", range(3))
    assert not list((tmp_path / "store").rglob(".tmp-*"))


READ_ONLY = """
import os, sys
from pathlib import Path
from shared.console import UserError
from shared.targets import TargetWriter
from tests.fixtures.targets import identity, key, matrix_record, write_records
root = Path(sys.argv[1])
write_records(root.parent / "warm", [0])  # imports all that is needed while it can be read
if os.getuid() == 0:
    os.chown(root.parent, 65534, 65534)
    os.setuid(65534)  # permissions do not bind the superuser
writer = TargetWriter(root, identity(), segment_records=3)
for number in range(3):
    writer.add(key(number), matrix_record(number))
os.chmod(root / writer.namespace.name / "segments", 0o555)
try:
    for number in range(3, 6):
        writer.add(key(number), matrix_record(number))
except UserError as error:
    print(error)
    os.chmod(root / writer.namespace.name / "segments", 0o755)
    writer.flush()  # nothing was lost
    sys.exit(1)
"""


@pytest.fixture
def public_folder():
    """A folder that another user may enter; pytest's own are for their owner alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_store_made_read_only_half_way(public_folder):
    (public_folder / "place").mkdir()
    command = [sys.executable, "-c", READ_ONLY, str(public_folder / "place" / "store")]
    result = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stderr
    assert "cannot write to the store" in result.stdout
    assert read_all(public_folder / "place" / "store", range(6))


def test_only_what_is_certainly_dead_is_swept_by_a_build(tmp_path):
    namespace = make(tmp_path / "store")
    segments = tmp_path / "store" / namespace.path("segments")
    foreign = segments / ".tmp-otherhost-17-abcdef"
    namesake = (
        segments / f".tmp-{socket.gethostname()}-2-17-abcdef"
    )  # the host `node-2` is not the host `node`
    own = segments / f".tmp-{socket.gethostname()}-17-abcdef"
    for folder in (foreign, namesake, own):
        (folder / "half").mkdir(parents=True)
    with temporary_folder(segments) as live:
        write_records(tmp_path / "store", [])
        assert live.exists()
        assert foreign.exists()
        assert namesake.exists()
        assert not own.exists()
        gc(tmp_path / "store", older_than=3600)
        assert foreign.exists()
        (swept,) = gc(tmp_path / "store", older_than=-1)
        assert live.exists()
        assert not foreign.exists()
        assert set(swept.strays) == {
            str(one.relative_to(tmp_path / "store")) for one in (foreign, namesake)
        }
    assert read_all(tmp_path / "store", range(6))


def test_age_is_measured_by_the_file_system_not_by_this_clock(tmp_path, monkeypatch):
    namespace = make(tmp_path / "store")
    segments = tmp_path / "store" / namespace.path("segments")
    for age, name in ((10, "young"), (10_000, "old"), (-10_000, "future")):
        folder = segments / f".tmp-otherhost-1-{name}"
        folder.mkdir()
        when = time.time() - age
        os.utime(folder, (when, when))
    real = time.time
    monkeypatch.setattr(
        time, "time", lambda: real() + 365 * 86400
    )  # this machine's clock is a year ahead
    gc(tmp_path / "store", older_than=3600)
    assert {path.name for path in segments.glob(".tmp-*")} == {
        ".tmp-otherhost-1-young",
        ".tmp-otherhost-1-future",
    }
    assert read_all(tmp_path / "store", range(6))


def test_a_store_survives_gc_while_it_is_open(tmp_path):
    write_records(tmp_path / "store", range(4))
    write_records(tmp_path / "store", range(2, 6))
    store = TargetStore.open(tmp_path / "store")
    (swept,) = gc(tmp_path / "store")
    assert swept.records == 2
    for number in range(6):
        np.testing.assert_array_equal(
            store[key(number)].similarity, matrix_record(number)["similarity"]
        )
    assert gc(tmp_path / "store")[0].superseded == []


def test_a_reader_that_opens_while_gc_moves_records(tmp_path, monkeypatch):
    """The segments that were listed are gone when their keys are to be read."""
    from shared.targets import index, opening

    write_records(tmp_path / "store", range(4))
    write_records(tmp_path / "store", range(2, 6))
    build_index, calls = index.build_index, []

    def interrupted(namespace, segments, known=None):
        if not calls:
            calls.append(segments)
            gc(tmp_path / "store")
        return build_index(namespace, segments, known)

    monkeypatch.setattr(opening, "build_index", interrupted)
    assert read_all(tmp_path / "store", range(6))
    assert calls


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b'{"key": "00", "reason": "", "time": ""}']
)
def test_a_damaged_quarantine_record_is_named_and_harms_no_record(tmp_path, content):
    namespace = make(tmp_path / "store")
    [record] = (tmp_path / "store" / namespace.name / "quarantine").glob("*-*.json")
    record.write_bytes(content)
    with pytest.raises(UserError, match=f"{record.name}: delete it"):
        list(quarantined(namespace))
    with pytest.raises(UserError, match=f"{record.name}: delete it"):
        merge([tmp_path / "store"], tmp_path / "other")
    assert [record.name in one for one in damages(tmp_path / "store")] == [True]
    (described,) = info(tmp_path / "store")
    assert described["records"] == 6
    assert [record.name in one for one in described["damaged"]] == [True]
    assert read_all(tmp_path / "store", range(6))


def test_gc_keeps_a_segment_that_equals_what_is_left_of_another(tmp_path):
    """What remains of {0, 1} is the very segment {0} (or {1}) that was superseded."""
    for extra in range(4):
        root = tmp_path / str(extra)
        for numbers in ([0], [1], [0, 1], [1, 2 + extra], [0, 2 + extra]):
            write_records(root, numbers)
        gc(root)
        assert read_all(root, [0, 1, 2 + extra])
        gc(root)
        assert read_all(root, [0, 1, 2 + extra])


def test_a_damaged_or_foreign_index_is_rebuilt(tmp_path):
    make(tmp_path / "store")
    assert read_all(tmp_path / "store", range(6))
    (places,) = (tmp_path / "cache").rglob("places.npy")
    good = places.read_bytes()
    for bad in (b"", good[:-8], good[:-48] + good[-24:] + good[-48:-24], good[:130] + b"\xff" * 46):
        places.write_bytes(bad)
        assert read_all(tmp_path / "store", range(6))


def test_no_place_for_a_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "file"))
    make(tmp_path / "store")
    assert read_all(tmp_path / "store", range(6))


def test_a_build_killed_at_its_very_start_is_no_store(tmp_path):
    (tmp_path / "store" / identity().namespace()).mkdir(parents=True)
    (tmp_path / "store" / identity().namespace() / ".tmp-host-1-x").write_text("{")
    with pytest.raises(UserError, match="no target store"):
        TargetStore.open(tmp_path / "store")
    with TargetWriter(tmp_path / "store", identity()) as target_writer:
        target_writer.add(key(0), matrix_record(0))
    assert read_all(tmp_path / "store", range(1))
