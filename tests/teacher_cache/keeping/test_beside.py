"""`gc` beside another `gc`, a build and a merge: no record is lost, and no damage is seen."""

import os
import random
import shutil
import tempfile
from functools import partial
from pathlib import Path

import pytest

from shared.targets import TargetStore
from shared.targets.namespace import create_namespace
from shared.targets.segment.manifest import keys_present
from shared.targets.segment.scan import scan
from shared.targets.storage import LocalStorage, local, open_storage
from shared.targets.storage.objects import ObjectStorage
from teacher_cache.keeping.gc import gc
from teacher_cache.keeping.info import info, listing
from teacher_cache.keeping.merge import merge
from tests.fixtures.interleaving import interleave
from tests.fixtures.targets import identity, key, write_records

pytestmark = pytest.mark.integration
MEMORY = Path("/dev/shm")
FAST = pytest.param(8, id="few")
SLOW = pytest.param(1000, id="thousand", marks=pytest.mark.slow)


@pytest.fixture(params=["locks", "leases"])
def folder(request, monkeypatch):
    """A folder on a file system with locks, or on one without any."""
    if request.param == "leases":
        flock = local._flock
        monkeypatch.setattr(
            local,
            "_flock",
            lambda descriptor: False if _names_identity(descriptor) else flock(descriptor),
        )
    root = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
    monkeypatch.setenv("MEDALIGN_CACHE", str(root / "cache"))
    yield root
    shutil.rmtree(root)


def _names_identity(descriptor):
    """Whether it is the lock of a namespace, which is its zarr.json; not a temporary folder's."""
    return os.fstat(descriptor).st_size > 0


def overlapping(root, generator):
    """Fill a store with segments that share records; return the numbers in it."""
    held = set()
    for _ in range(generator.randint(2, 4)):
        numbers = generator.sample(range(6), generator.randint(1, 3))
        write_records(root, numbers)
        held.update(numbers)
    return held


def look(root):
    info(root)
    list(listing(create_namespace(root, identity())))


def assert_holds(namespace, numbers):
    present, damaged = keys_present(namespace)
    assert not damaged
    assert present == {key(number) for number in numbers}
    assert not [one.damage for one in scan(namespace.storage) if one.damage]


def assert_no_alarm(outcomes):
    assert not [one for one in outcomes if isinstance(one, Exception)]


@pytest.mark.parametrize("count", [FAST, SLOW])
def test_two_at_once_lose_nothing(folder, count):
    for seed in range(count):
        generator = random.Random(seed)
        root = folder / str(seed)
        held = overlapping(root, generator)
        outcomes = interleave(seed, LocalStorage, partial(gc, root), partial(gc, root))
        assert_no_alarm(outcomes)
        assert any(not one.busy for [one] in outcomes)
        namespace = create_namespace(root, identity())
        assert_holds(namespace, held)
        gc(root)
        assert_holds(namespace, held)
        assert not list(root.rglob(".lease*"))
        shutil.rmtree(root)


@pytest.mark.parametrize("count", [FAST, SLOW])
def test_beside_a_build_a_merge_and_readers(folder, count):
    for seed in range(count):
        generator = random.Random(seed)
        root, other = folder / f"{seed}a", folder / f"{seed}b"
        held = overlapping(root, generator)
        brought = overlapping(other, generator)
        built = generator.sample(range(8), 3)
        outcomes = interleave(
            seed,
            LocalStorage,
            partial(gc, root),
            partial(write_records, root, built, segment_records=2),
            partial(merge, [other], root),
            partial(gc, other),
            partial(look, root),
            partial(TargetStore.open, root),
        )
        assert_no_alarm(outcomes)
        assert_holds(create_namespace(root, identity()), held | brought | set(built))
        assert_holds(create_namespace(other, identity()), brought)
        shutil.rmtree(root)
        shutil.rmtree(other)


@pytest.mark.parametrize("count", [FAST, SLOW])
def test_dropping_damage_beside_the_build_that_mends_it_loses_nothing(folder, count):
    """The build makes the very segment again that `gc --damaged` is about to remove."""
    for seed in range(count):
        root = folder / str(seed)
        namespace = write_records(root, [0, 1])
        (segment,) = namespace.segments()
        shard = root / namespace.path("segments", segment, "similarity/c/0/0")
        shard.write_bytes(shard.read_bytes()[:-1])
        outcomes = interleave(
            seed,
            LocalStorage,
            partial(gc, root, damaged=True),
            partial(write_records, root, [0, 1]),
        )
        assert_no_alarm(outcomes)
        assert_holds(namespace, [0, 1])
        shutil.rmtree(root)


@pytest.mark.parametrize("count", [FAST, SLOW])
def test_two_at_once_in_an_object_store(count):
    for seed in range(count):
        storage = open_storage("memory:///store")
        held = overlapping(storage, random.Random(seed))
        outcomes = interleave(seed, ObjectStorage, partial(gc, storage), partial(gc, storage))
        assert_no_alarm(outcomes)
        assert_holds(create_namespace(storage, identity()), held)
