"""Which items stand or fall together."""

import pytest

from pipelines.evaluation.clusters import clusters_of
from shared.errors import UserError
from shared.records import Record, Turn

pytestmark = pytest.mark.unit


def record(number: int, **extra: object) -> Record:
    return Record(str(number), (), (Turn("human", "?"), Turn("gpt", "!")), extra=dict(extra))


def test_records_that_share_any_image_are_one_cluster() -> None:
    records = [record(number) for number in range(6)]
    contents = [("a",), ("b", "c"), ("c", "d"), (), (), ("d",)]
    unit, names = clusters_of(records, contents)
    assert unit == "image"
    # b-c, c-d and d hang together; the two questions of text alone do not.
    assert names[1] == names[2] == names[5]
    assert len({names[0], names[1], names[3], names[4]}) == 4


def test_one_content_under_two_names_is_one_image() -> None:
    """The content decides, which is all that is given; the order of the images does not."""
    _, names = clusters_of([record(0), record(1)], [("a", "b"), ("b", "a")])
    assert names[0] == names[1]


def test_the_patient_decides_where_every_record_has_one() -> None:
    records = [record(0, patient="p"), record(1, patient="p"), record(2, patient=7)]
    assert clusters_of(records, [("a",), ("b",), ("c",)]) == ("patient", ["p", "p", "7"])
    records[1] = record(1)
    assert clusters_of(records, [("a",), ("b",), ("c",)]).unit == "image"


def test_a_field_that_a_record_lacks_is_an_error() -> None:
    records = [record(0, study=1), record(1, study=""), record(2)]
    assert clusters_of(records[:1], [("a",)], "study") == ("study", ["1"])
    with pytest.raises(UserError, match=r"--cluster study: 2 of 3 records .* first id 1"):
        clusters_of(records, [("a",), ("b",), ("c",)], "study")
