"""What is in a store, told without a teacher or a data set."""

import json

import pytest

from shared.targets.namespace import quarantine
from teacher_cache.keeping.info import info, listing
from tests.fixtures.targets import identity, key, write_factors, write_records

pytestmark = pytest.mark.unit


def test_info_counts_and_sizes(tmp_path):
    namespace = write_records(tmp_path / "store", range(5))
    write_records(tmp_path / "store", range(3, 7))
    quarantine(namespace, key(50), "not an image")
    (described,) = info(tmp_path / "store")
    assert described["records"] == 7
    assert described["superseded"] == 2
    assert described["segments"] == 3
    assert described["quarantined"] == 1
    assert described["damaged"] == []
    assert described["fingerprint"] == identity().fingerprint()
    on_disk = sum(
        path.stat().st_size
        for path in (tmp_path / "store").rglob("segments/*/*/**/*")
        if path.is_file()
    )
    groups = len(namespace.segments()) * len(
        (tmp_path / "store" / namespace.name / "quarantine/zarr.json").read_bytes()
    )
    assert abs(described["bytes"] - on_disk) < groups * 2
    json.dumps(described)


def test_info_tells_ranks_and_errors_of_factors(tmp_path):
    write_factors(tmp_path / "store", 5)
    (described,) = info(tmp_path / "store")
    assert (
        1
        <= described["rank"]["smallest"]
        <= described["rank"]["mean"]
        <= described["rank"]["largest"]
        <= 12
    )
    assert 0 < described["error"]["24x24"]["mean"] <= described["error"]["24x24"]["largest"] <= 0.1


def test_info_reports_damage_and_goes_on(tmp_path):
    namespace = write_records(tmp_path / "store", range(8))
    (
        tmp_path / "store" / namespace.path("segments", namespace.segments()[0], "manifest.json")
    ).unlink()
    (described,) = info(tmp_path / "store")
    assert described["records"] == 4
    assert len(described["damaged"]) == 1


def test_listing_names_every_record_once_as_live(tmp_path):
    namespace = write_records(tmp_path / "store", range(4))
    write_records(tmp_path / "store", range(2, 5))
    rows = list(listing(namespace))
    assert len(rows) == 7
    assert sorted(row.key for row in rows if not row.superseded) == sorted(
        key(number).hex() for number in range(5)
    )
