"""The cached index when several processes write it."""

import numpy as np
import pytest

from shared.targets import index, opening
from shared.targets.index import build_index
from shared.targets.opening import open_index
from shared.targets.segment.manifest import Manifest
from tests.fixtures.targets import write_records

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDALIGN_CACHE", str(tmp_path / "cache"))


def test_another_process_older_index_is_not_taken(tmp_path, monkeypatch):
    """It is written between this process's writing and mapping."""
    namespace = write_records(tmp_path / "store", range(3))
    older = build_index(namespace, namespace.segments())
    write_records(tmp_path / "store", range(3, 6))
    save = opening._save

    def overtaken(built, folder):
        save(built, folder)
        save(opening._Known(older, ""), folder)

    monkeypatch.setattr(opening, "_save", overtaken)
    found = open_index(namespace)
    assert found.segments == tuple(namespace.segments())
    assert len(found.keys) == 6


def test_arrays_of_two_writings_are_not_mixed(tmp_path, monkeypatch):
    namespace = write_records(tmp_path / "store", range(3))
    built = open_index(namespace)
    load, calls = np.load, []

    def replaced_in_between(path, **options):
        calls.append(path)
        if len(calls) == 2:
            opening._save(opening._Known(built, ""), path.parent)
        return load(path, **options)

    monkeypatch.setattr(np, "load", replaced_in_between)
    assert opening._load(opening._folder(namespace)) is None
    assert len(calls) == 2
    assert opening._load(opening._folder(namespace)) is not None


class Counted(str):
    """A segment's id that counts how often it is compared."""

    __slots__ = ()
    comparisons = 0

    def __eq__(self, other):
        Counted.comparisons += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_an_update_compares_ids_in_proportion_to_their_number(tmp_path, monkeypatch):
    """Looking each one up in a tuple took 72 s of 40,000 segments."""
    count = 2000
    ids = [f"{number:032x}" for number in range(count + 1)]
    rows = {one: np.full((1, 32), number % 251, np.uint8) for number, one in enumerate(ids)}
    monkeypatch.setattr(
        index, "read_manifests", lambda namespace, ids: [Manifest(1, {})] * len(ids)
    )
    monkeypatch.setattr(index, "keys_of", lambda namespace, segment, manifest: rows[segment])
    namespace = write_records(tmp_path / "store", [])
    known = build_index(namespace, [Counted(one) for one in ids[:count]])
    Counted.comparisons = 0
    assert build_index(namespace, ids, known).segments == tuple(ids)
    assert Counted.comparisons <= 4 * count
