"""What `medalign.yaml` asks of a record. Images lie below this file, or MEDALIGN_IMAGE_ROOT."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.metrics.items import item_scores
from shared.imaging.images import open_image
from shared.records import Record, record_of

if TYPE_CHECKING:
    from PIL.Image import Image

Document = Mapping[str, object]


def doc_to_visual(doc: Document) -> "list[Image]":
    """Open the images of a record."""
    root = os.environ.get("MEDALIGN_IMAGE_ROOT") or Path(__file__).parent
    return [open_image(one) for one in _record(doc).references(root)]


def doc_to_text(doc: Document) -> str:
    """Return its question."""
    return _record(doc).question


def doc_to_target(doc: Document) -> str:
    """Return its reference answer."""
    return _record(doc).answer


def process_results(doc: Document, results: Sequence[str]) -> dict[str, float]:
    """Return the scores that the item takes part in, those of the task's metric_list."""
    scores = item_scores(_record(doc), results[0])
    return {
        name: score
        for name, score in scores.items()
        if not name.startswith(("open_f1", "open_exact")) and name != "closed_yes_no"
    }


def _record(doc: Document) -> Record:
    """Read a row of the data set, where a field that only other records have is None."""
    row = {key: value for key, value in doc.items() if value is not None}
    return record_of(row, "the data set", 0)
