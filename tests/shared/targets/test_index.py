"""The cached index when several processes write it."""

import sys
from pathlib import Path

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


def plain_index(rows):
    """The index of (key, segment number, row) by a dict: the first place of each key."""
    found = {}
    for one, number, row in sorted(rows):
        found.setdefault(one, (number, row))
    return sorted(found.items())


@pytest.mark.parametrize("seed", range(12))
def test_segments_that_come_one_after_another_make_the_index_of_all(tmp_path, monkeypatch, seed):
    """Keys that share their first bytes, keys in several segments, segments that sort before."""
    random = np.random.default_rng(seed)
    ids = [f"{number:032x}" for number in range(6)]
    pool = random.integers(0, 256, (40, 32), dtype=np.uint8)
    pool[:, : 8 * (seed % 3)] = 7  # of none, of the first 8, of the first 16 bytes
    held = {one: pool[random.choice(40, int(random.integers(1, 15)), replace=False)] for one in ids}
    monkeypatch.setattr(
        index, "read_manifests", lambda namespace, ids: [Manifest(1, {})] * len(ids)
    )
    monkeypatch.setattr(index, "keys_of", lambda namespace, segment, manifest: held[segment])
    namespace = write_records(tmp_path / "store", [])
    there: list[str] = []
    known = None
    for one in random.permutation(ids).tolist():
        there = sorted([*there, one])
        known = build_index(namespace, there, known)
        rows = [
            (key.tobytes(), number, row)
            for number, segment in enumerate(there)
            for row, key in enumerate(held[segment])
        ]
        places = [tuple(place) for place in known.places.tolist()]
        assert [*zip([bytes(key).ljust(32, b"\0") for key in known.keys], places, strict=True)] == (
            plain_index(rows)
        )
        wanted = [key.tobytes() for key in pool]
        found = known.at(known.find(wanted)).tolist()
        expected = dict(plain_index(rows))
        assert [tuple(one) for one in found] == [expected.get(key, (-1, -1)) for key in wanted]


def test_look_ups_in_a_large_mapped_index_keep_no_pages(tmp_path, monkeypatch):
    """What is resident of the mapped file is given back after each of them."""
    monkeypatch.setattr(index, "_RESIDENT", 1)
    namespace = write_records(tmp_path / "store", [])
    rows = np.random.default_rng(0).integers(0, 256, (200_000, 32), dtype=np.uint8)
    monkeypatch.setattr(index, "read_manifests", lambda namespace, ids: [Manifest(1, {})])
    monkeypatch.setattr(index, "keys_of", lambda namespace, segment, manifest: rows)
    opening._save(opening._Known(build_index(namespace, ["0" * 32]), ""), tmp_path / "index")
    loaded = opening._load(tmp_path / "index")
    assert loaded is not None
    wanted = [row.tobytes() for row in rows[::100]]
    places = loaded.held.at(loaded.held.find(wanted))
    assert places[:, 1].tolist() == list(range(0, 200_000, 100))
    if sys.platform == "linux":
        maps = Path("/proc/self/smaps").read_text().split("\n")
        starts = [
            n for n, line in enumerate(maps) if line.endswith(str(tmp_path / "index/keys.npy"))
        ]
        resident = [line for line in maps[starts[0] : starts[0] + 8] if line.startswith("Rss:")]
        assert int(resident[0].split()[1]) < 1000  # kB, of 6,250
