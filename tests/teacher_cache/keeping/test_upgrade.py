"""Stores of format 1 become format 2 with the very same arrays."""

from typing import Any

import numpy as np
import pytest

from shared.errors import UserError
from shared.imaging import Grid
from shared.targets import TargetStore, TargetWriter
from shared.targets.namespace import list_namespaces, quarantine, quarantined
from shared.targets.segment.scan import scan
from teacher_cache.building import build, check_format
from teacher_cache.keeping.upgrade import upgrade
from teacher_cache.plan import plan
from teacher_cache.settings import Settings
from teacher_cache.sources import find_images
from tests.fixtures.images import image_folder
from tests.fixtures.memory_storage import MemoryStorage
from tests.fixtures.targets import (
    factors_record,
    identity,
    key,
    matrix_record,
    write_factors,
    write_records,
)
from tests.fixtures.tiny_teacher import TEACHER, tiny_weights

pytestmark = pytest.mark.unit
KINDS: dict[str, Any] = {
    "matrix": (matrix_record, {}),
    "u8": (matrix_record, {"precision": "u8"}),
    "factors": (factors_record, {"encoding": "factors", "tolerance": 0.01}),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_arrays_are_the_same(tmp_path, kind):
    record, changes = KINDS[kind]
    old = write_records(tmp_path, range(6), record=record, format=1, **changes)
    quarantine(old, key(77), "truncated")
    keys = [key(number) for number in range(6)]
    before = TargetStore.open(tmp_path).arrays(keys)
    (done,) = upgrade(tmp_path)
    assert done.old == old.name
    assert (done.segments, done.records, done.already_there) == (2, 6, 0)
    opened = TargetStore.open(tmp_path)  # of the two, the newer is taken
    assert opened.identity == identity(**changes)
    assert opened.namespace.name == done.namespace
    after = opened.arrays(keys)
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name])
    assert [one.key for one in quarantined(opened.namespace)] == [key(77)]
    assert not [one for one in scan(tmp_path) if one.damage]
    assert upgrade(tmp_path)[0].segments == 0


def test_factors_of_several_ranks(tmp_path):
    """A segment's third axis is as long as its largest rank."""
    write_factors(tmp_path, 5, store_format=1)
    keys = [key(number) for number in range(5)]
    before = TargetStore.open(tmp_path).batch(keys)
    upgrade(tmp_path, remove=True)
    (only,) = list_namespaces(tmp_path)
    assert only.identity.format == 2
    after = TargetStore.open(tmp_path).batch(keys)
    np.testing.assert_array_equal(before.similarity, after.similarity)


def test_a_fingerprint_still_names_the_old_form(tmp_path):
    old = write_records(tmp_path, range(3), format=1)
    upgrade(tmp_path)
    opened = TargetStore.open(tmp_path, fingerprint=old.identity.fingerprint())
    assert opened.identity.format == 1


def test_a_damaged_segment_is_not_taken_over(tmp_path):
    old = write_records(tmp_path, range(3), format=1)
    shard = tmp_path / old.path("segments", old.segments()[0], "similarity/c/0/0")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged segment"):
        upgrade(tmp_path, remove=True)
    assert old.name in {one.name for one in list_namespaces(tmp_path)}


def test_a_build_does_not_encode_again_what_can_be_upgraded(tmp_path):
    write_records(tmp_path, range(3), format=1)
    with pytest.raises(UserError, match="cache upgrade --store"):
        check_format(tmp_path, identity())
    upgrade(tmp_path)
    check_format(tmp_path, identity())
    check_format(tmp_path, identity(precision="u8"))


@pytest.mark.integration
def test_the_way_out_of_a_refused_build_works(tmp_path):
    """`plan` and `build` refuse alike; after the upgrade that they name all is found."""
    image_folder(tmp_path / "images", 3)
    images = find_images(str(tmp_path / "images"))
    options: Any = {
        "weights": tiny_weights(tmp_path / "tiny.safetensors"),
        "settings": Settings(grid=Grid(10, 10)),
    }
    build(TEACHER, images, tmp_path / "new", **options)
    made = TargetStore.open(tmp_path / "new")
    old = made.identity.model_copy(update={"format": 1})
    with TargetWriter(tmp_path / "store", old) as writer:
        for name in [one for group in made.by_segment() for one in group]:
            writer.add(name, {one: all_[0] for one, all_ in made.arrays([name]).items()})
    for refused in (plan, build):
        with pytest.raises(UserError, match=f"cache upgrade --store {tmp_path / 'store'}"):
            refused(TEACHER, images, tmp_path / "store", **options)
    upgrade(tmp_path / "store")
    found = build(TEACHER, images, tmp_path / "store", **options)
    assert (found.found, found.encoded) == (3, 0)


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "leases"])
def test_the_old_form_is_removed_while_it_is_held(locks):
    storage = MemoryStorage("store", locks)
    old = write_records(storage, range(6), format=1)
    with storage.exclusive(old.name) as hold:
        assert hold is not None
        (busy,) = upgrade(storage, remove=True)
        assert not busy.removed
    (done,) = upgrade(storage, remove=True)
    assert done.removed
    assert [one.identity.format for one in list_namespaces(storage)] == [2]
    assert not [path for path in storage.files if path.startswith(f"{old.name}/")]
