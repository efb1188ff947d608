"""A hypothesis state machine.

Build, kill, resume, merge, gc, compact, corrupt, read, against a plain dict as the model.
"""

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shared.targets import TargetStore
from shared.targets.namespace import create_namespace
from shared.targets.segment.checks import keys_present
from shared.targets.segment.scan import scan
from shared.targets.storage import LocalStorage
from teacher_cache.keeping.gc import gc
from teacher_cache.keeping.merge import merge
from tests.fixtures.interleaving import interleave
from tests.fixtures.targets import identity, key, matrix_record, write_records

pytestmark = pytest.mark.integration

MEMORY = Path("/dev/shm")  # thousands of flushes to disk would be most of the time
NUMBERS = st.sets(st.integers(0, 11), min_size=1, max_size=6)


class Killed(BaseException):
    """The process is gone: nothing runs after it, no clean-up either."""


class Machine(RuleBasedStateMachine):
    """The model is the dict `held`: record number to the segments that hold it soundly."""

    store_format = 2

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        os.environ["MEDALIGN_CACHE"] = str(self.folder / "cache")
        self.root = self.folder / "store"
        self.other = self.folder / "other"
        self.namespace = create_namespace(self.root, identity(format=self.store_format))
        self.name = self.namespace.name
        self.held: dict[int, set[str]] = {}
        self.broken: set[str] = set()
        self.of_another: set[int] = set()

    def teardown(self):
        shutil.rmtree(self.folder)
        os.environ.pop("MEDALIGN_CACHE", None)

    def _learn(self):
        """Add what new sound segments hold, by their own keys."""
        import zarr

        # A build that makes a damaged segment's very records again replaces it; killed in between,
        # it leaves neither.
        replaced = self.broken - {
            checked.path.rsplit("/", 1)[1] for checked in scan(self.root) if checked.damage
        }
        self.broken -= replaced
        for segment in replaced - set(self.namespace.segments()):
            self._forget(segment)
        for segment in self.namespace.segments():
            if segment in self.broken or any(segment in places for places in self.held.values()):
                continue
            stored = zarr.open_array(
                self.root / self.namespace.path("segments", segment, "key"), mode="r"
            )[:]
            names = {key(number): number for number in range(12)}
            for row in stored:
                self.held.setdefault(names[row.tobytes()], set()).add(segment)

    def _write(self, root, numbers, **options):
        return write_records(root, numbers, format=self.store_format, **options)

    def _forget(self, segment):
        for number in list(self.held):
            self.held[number].discard(segment)
            if not self.held[number]:
                del self.held[number]

    @rule(numbers=NUMBERS, size=st.integers(1, 4))
    def build(self, numbers, size):
        self._write(self.root, sorted(numbers), segment_records=size)
        self._learn()
        assert numbers <= self.held.keys()

    @rule(numbers=NUMBERS, size=st.integers(1, 3), step=st.integers(0, 40))
    def kill_while_building(self, numbers, size, step):
        work = partial(self._write, self.root, sorted(numbers), segment_records=size)
        self._killed(step, work)
        self._learn()

    def _killed(self, step, work):
        """Die at the n-th flush to disk; nothing is cleaned up."""
        calls = 0
        real_fsync, real_rmtree = os.fsync, shutil.rmtree

        def fsync(descriptor):
            nonlocal calls
            calls += 1
            if calls > step:
                raise Killed
            real_fsync(descriptor)

        os.fsync, shutil.rmtree = fsync, cast("Any", lambda *args, **options: None)
        try:
            work()
        except Killed:
            pass
        finally:
            os.fsync, shutil.rmtree = real_fsync, real_rmtree

    @rule(numbers=NUMBERS)
    def resume(self, numbers):
        present, damaged = keys_present(self.namespace)
        assert len(damaged) <= len(self.broken)  # a flip in a shard shows only on a full scan
        missing = [number for number in sorted(numbers) if key(number) not in present]
        self._write(self.root, missing, segment_records=2)
        assert not list(self.root.rglob(".tmp-*"))
        self._learn()

    @rule(numbers=NUMBERS)
    def merge_another(self, numbers):
        shutil.rmtree(self.other, ignore_errors=True)
        self._write(self.other, sorted(numbers), segment_records=3)
        merge([self.other], self.root)
        self._learn()

    @precondition(lambda self: not self.broken)
    @rule()
    def collect(self):
        before = set(self.held)
        gc(self.root)
        self.held = {}
        self._learn()
        assert set(self.held) == before
        assert all(len(places) == 1 for places in self.held.values())

    @precondition(lambda self: not self.broken)
    @rule()
    def compact(self):
        before = set(self.held)
        [swept] = [one for one in gc(self.root, compacting=True) if one.namespace == self.name]
        self.held = {}
        self._learn()
        assert set(self.held) == before
        segments = self.namespace.segments()
        if self.store_format == 1:
            assert swept.older_format
        else:  # twelve records of any segments fit one
            assert len(segments) == bool(before)
            assert swept.written == bool(swept.compacted)

    @precondition(lambda self: not self.broken)
    @rule(step=st.integers(0, 40))
    def kill_while_compacting(self, step):
        before = set(self.held)
        self._killed(step, partial(gc, self.root, compacting=True))
        self.held = {}
        self._learn()
        assert set(self.held) == before

    @precondition(lambda self: not self.broken)
    @rule(seed=st.integers(0, 2**16), numbers=NUMBERS)
    def compact_while_building(self, seed, numbers):
        before = set(self.held)
        build = partial(self._write, self.root, sorted(numbers), segment_records=2)
        self._beside(seed, build, compacting=True)
        assert set(self.held) == before | numbers

    @precondition(lambda self: not self.broken)
    @rule(seed=st.integers(0, 2**16))
    def collect_twice_at_once(self, seed):
        before = set(self.held)
        self._beside(seed, partial(gc, self.root))
        assert set(self.held) == before

    @precondition(lambda self: not self.broken)
    @rule(seed=st.integers(0, 2**16), numbers=NUMBERS)
    def collect_while_building(self, seed, numbers):
        before = set(self.held)
        self._beside(seed, partial(self._write, self.root, sorted(numbers), segment_records=2))
        assert set(self.held) == before | numbers

    @precondition(lambda self: not self.broken)
    @rule(seed=st.integers(0, 2**16), numbers=NUMBERS)
    def merge_while_collecting(self, seed, numbers):
        shutil.rmtree(self.other, ignore_errors=True)
        self._write(self.other, sorted(numbers), segment_records=3)
        before = set(self.held)
        self._beside(seed, partial(merge, [self.other], self.root))
        assert set(self.held) == before | numbers

    def _beside(self, seed, work, **options):
        """Run `gc` and some work in turns; then learn anew what the segments hold."""
        outcomes = interleave(seed, LocalStorage, partial(gc, self.root, **options), work)
        assert not [one for one in outcomes if isinstance(one, Exception)]
        self.held = {}
        self._learn()

    @rule(name=st.sampled_from([".DS_Store", "Thumbs.db", "notes.txt"]))
    def put_a_foreign_file(self, name):
        for folder in (self.root, *self.root.rglob("*")):
            if folder.is_dir() and not folder.name.startswith("."):
                (folder / name).write_bytes(b"foreign")

    @rule(numbers=NUMBERS)
    def build_for_another_teacher(self, numbers):
        self._write(self.root, sorted(numbers), segment_records=2, teacher="zzz")
        self.of_another |= numbers
        other = TargetStore.open(self.root, teacher="zzz")
        assert set(other.keys()) == {key(number) for number in self.of_another}

    @precondition(lambda self: self.held and not self.broken)
    @rule(data=st.data())
    def corrupt(self, data):
        segment = data.draw(st.sampled_from(sorted(set().union(*self.held.values()))))
        folder = self.root / self.namespace.path("segments", segment)
        path = data.draw(
            st.sampled_from(
                sorted(
                    path
                    for path in folder.rglob("*")
                    if path.is_file() and path.name not in (".DS_Store", "Thumbs.db", "notes.txt")
                )
            )
        )
        content = bytearray(path.read_bytes())
        how = data.draw(st.sampled_from(["flip", "cut", "empty", "delete"]))
        if how == "flip":
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(
                st.integers(0, 7)
            )
            path.write_bytes(content)
        elif how == "delete":
            path.unlink()
        else:
            path.write_bytes(content[: len(content) // 2 if how == "cut" else 0])
        self.broken.add(segment)
        assert [checked.path for checked in scan(self.root) if checked.damage] == [
            self.namespace.path("segments", segment)
        ]

    @precondition(lambda self: self.broken)
    @rule()
    def drop_damage(self):
        swept = gc(self.root, damaged=True)[0]  # of this teacher, the first by name
        assert set(swept.damaged) == self.broken
        for segment in self.broken:
            self._forget(segment)
        before = set(self.held)
        self.broken, self.held = set(), {}
        self._learn()
        assert set(self.held) == before

    @precondition(lambda self: not self.broken)
    @invariant()
    def all_is_read_as_it_was_written(self):
        assert not [checked.damage for checked in scan(self.root) if checked.damage]
        store = TargetStore.open(self.root, teacher=identity().teacher)
        assert set(store.keys()) == {key(number) for number in self.held}
        numbers = sorted(self.held)
        batch = store.batch([key(number) for number in numbers])
        for row, number in enumerate(numbers):
            for name, values in matrix_record(number).items():
                np.testing.assert_array_equal(getattr(batch, name)[row], values)


CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


class MachineOfFormat1(Machine):
    store_format = 1


class TestMachine(Machine.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(
        max_examples=5, stateful_step_count=12, deadline=None, suppress_health_check=CHECKS
    )


class TestMachineOfFormat1(MachineOfFormat1.TestCase):  # type: ignore[misc, valid-type]
    settings = TestMachine.settings


@pytest.mark.slow
class TestMachineLong(Machine.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(
        max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=CHECKS
    )


@pytest.mark.slow
class TestMachineOfFormat1Long(MachineOfFormat1.TestCase):  # type: ignore[misc, valid-type]
    settings = TestMachineLong.settings
