"""`gc` beside another `gc`, a build and a merge: no record is lost, and no damage is seen."""

import os
import random
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from shared.targets import TargetStore
from shared.targets.namespace import create_namespace
from shared.targets.segment.checks import keys_present
from shared.targets.segment.scan import scan
from shared.targets.storage import LocalStorage, local, open_storage
from shared.targets.storage.objects import ObjectStorage
from teacher_cache.keeping.gc import gc
from teacher_cache.keeping.info import info, listing
from teacher_cache.keeping.merge import merge
from teacher_cache.missing import missing_keys
from tests.fixtures.interleaving import interleave
from tests.fixtures.memory_storage import MemoryStorage
from tests.fixtures.targets import identity, key, write_records

pytestmark = pytest.mark.integration
MEMORY = Path("/dev/shm")


class Place(NamedTuple):
    """Where the stores of a test lie: in memory, or in a folder."""

    kind: type
    folder: Path
    locks: bool

    def store(self, name):
        """A new store."""
        if self.kind is MemoryStorage:
            return MemoryStorage(name, self.locks)
        return LocalStorage(self.folder / name)

    def forget(self):
        """Make room: the folders, and the indexes of all stores."""
        shutil.rmtree(self.folder, ignore_errors=True)


PLACES = [
    pytest.param((kind, lock == "locks", count), id=f"{name}-{lock}-{count}", marks=marks)
    for kind, count, name, marks in (
        (LocalStorage, 2, "folder", ()),
        (MemoryStorage, 6, "memory", ()),
        (MemoryStorage, 1000, "memory", pytest.mark.slow),
    )
    for lock in ("locks", "leases")
]


@pytest.fixture
def place(request, monkeypatch):
    """A place with locks, or one without any, where a lease stands for them."""
    kind, locks, _ = request.param
    if not locks:
        flock = local._flock
        monkeypatch.setattr(
            local,
            "_flock",
            lambda descriptor: False if _names_identity(descriptor) else flock(descriptor),
        )
    root = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
    monkeypatch.setenv("MEDALIGN_CACHE", str(root / "stores/cache"))
    yield Place(kind, root / "stores", locks)
    shutil.rmtree(root)


@pytest.fixture
def seeds(request):
    """Numbers of the interleavings to try."""
    return range(request.node.callspec.params["place"][2])


def in_every_place(test):
    return pytest.mark.parametrize("place", PLACES, indirect=True)(test)


def _names_identity(descriptor):
    """Whether it is the lock of a namespace, which is its zarr.json; not a temporary folder's."""
    return os.fstat(descriptor).st_size > 0


def overlapping(store, generator):
    """Fill a store with segments that share records; return the numbers in it."""
    held = set()
    for _ in range(generator.randint(2, 4)):
        numbers = generator.sample(range(6), generator.randint(1, 3))
        write_records(store, numbers)
        held.update(numbers)
    return held


def build(store, numbers):
    """What `cache build` does with a store: look for what is missing, and write that alone."""
    missing = set(missing_keys(create_namespace(store, identity()), map(key, numbers)))
    write_records(store, [one for one in numbers if key(one) in missing], segment_records=2)


def look(store):
    info(store)
    list(listing(create_namespace(store, identity())))


def assert_holds(namespace, numbers):
    present, damaged = keys_present(namespace)
    assert not damaged
    assert present == {key(number) for number in numbers}
    assert not [one.damage for one in scan(namespace.storage) if one.damage]


def assert_no_alarm(outcomes):
    assert not [one for one in outcomes if isinstance(one, Exception)]


def assert_no_lease(store):
    assert not [name for name in store.sizes(identity().namespace()) if ".lease" in name]


@in_every_place
def test_two_at_once_lose_nothing(place, seeds):
    for seed in seeds:
        store = place.store(f"store{seed}")
        held = overlapping(store, random.Random(seed))
        outcomes = interleave(seed, place.kind, partial(gc, store), partial(gc, store))
        assert_no_alarm(outcomes)
        assert any(not one.busy for [one] in outcomes)
        namespace = create_namespace(store, identity())
        assert_holds(namespace, held)
        gc(store)
        assert_holds(namespace, held)
        assert_no_lease(store)
        place.forget()


@in_every_place
def test_beside_a_build_a_merge_and_readers(place, seeds):
    for seed in seeds:
        generator = random.Random(seed)
        store, other = place.store("store"), place.store("other")
        held = overlapping(store, generator)
        brought = overlapping(other, generator)
        built = generator.sample(range(8), 3)
        outcomes = interleave(
            seed,
            place.kind,
            partial(gc, store),
            partial(build, store, built),
            partial(merge, [other], store),
            partial(gc, other),
            partial(look, store),
            partial(TargetStore.open, store),
        )
        assert_no_alarm(outcomes)
        assert_holds(create_namespace(store, identity()), held | brought | set(built))
        assert_holds(create_namespace(other, identity()), brought)
        place.forget()


@in_every_place
def test_dropping_damage_beside_the_build_that_mends_it_loses_nothing(place, seeds):
    """The build makes the very segment again that `gc --damaged` is about to remove."""
    for seed in seeds:
        store = place.store("store")
        namespace = write_records(store, [0, 1])
        (segment,) = namespace.segments()
        shard = namespace.path("segments", segment, "similarity/c/0/0")
        whole = store.read(shard)
        store.discard(shard)
        store.create(shard, whole[:-1])
        outcomes = interleave(
            seed,
            place.kind,
            partial(gc, store, damaged=True),
            partial(write_records, store, [0, 1]),
        )
        assert_no_alarm(outcomes)
        assert_holds(namespace, [0, 1])
        place.forget()


@pytest.mark.parametrize("count", [4, pytest.param(1000, marks=pytest.mark.slow)])
def test_two_at_once_in_an_object_store(count):
    for seed in range(count):
        storage = open_storage("memory:///store")
        held = overlapping(storage, random.Random(seed))
        outcomes = interleave(seed, ObjectStorage, partial(gc, storage), partial(gc, storage))
        assert_no_alarm(outcomes)
        assert_holds(create_namespace(storage, identity()), held)
