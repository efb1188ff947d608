"""Which items stand or fall together: questions about one patient, or about one image.

The one place that names the cluster of an item. Intervals and tests draw clusters, never items.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shared.errors import UserError
from shared.records import Record

PATIENT_FIELDS = ("patient", "patient_id", "subject", "subject_id")
IMAGE = "image"


class Clusters(NamedTuple):
    """The name of each item's cluster, and what a cluster is: `image`, or a field's name."""

    unit: str
    names: list[str]


def clusters_of(
    records: Sequence[Record], contents: Sequence[Sequence[str]], field: str | None = None
) -> Clusters:
    """Name the cluster of every record.

    Parameters
    ----------
    records
        Of the test set.
    contents
        The content keys of each record's images. Records that share any image are one cluster; a
        record without an image is its own.
    field
        A field of the records that names the cluster. Default: the patient's, where every record
        has it (`PATIENT_FIELDS`), else the images.

    Raises
    ------
    UserError
        A record lacks the field.
    """
    if field is None:
        field = next(
            (name for name in PATIENT_FIELDS if all(_said(one, name) for one in records)), None
        )
    if field is None:
        return Clusters(IMAGE, connected(contents))
    silent = [record.id for record in records if not _said(record, field)]
    if silent:
        raise UserError(
            f"--cluster {field}: {len(silent)} of {len(records)} records have no field "
            f"`{field}`, first id {silent[0]}"
        )
    return Clusters(field, [str(record.extra[field]) for record in records])


def _said(record: Record, field: str) -> bool:
    return record.extra.get(field) not in (None, "")


def connected(contents: Sequence[Sequence[str]]) -> list[str]:
    """Name the connected groups of records that share images, by the group's first image."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    number: dict[str, int] = {}
    edges = [
        (row, number.setdefault(content, len(number)))
        for row, shown in enumerate(contents)
        for content in shown
    ]
    count, total = len(contents), len(contents) + len(number)
    rows = np.array([row for row, _ in edges], dtype=np.int64)
    columns = np.array([count + column for _, column in edges], dtype=np.int64)
    graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(total, total))
    _, groups = connected_components(graph, directed=False)
    first: dict[int, str] = {}
    for row, shown in enumerate(contents):
        first.setdefault(int(groups[row]), shown[0] if shown else f"item {row}")
    return [first[int(group)] for group in groups[:count]]
