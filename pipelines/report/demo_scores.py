"""`scores.json`, which a demo leaves for its page.

Its evaluation's result, with what was done and how long it took.
"""

from pathlib import Path
from typing import TypedDict, cast

from pipelines.documents import read_document, write_document
from pipelines.evaluation.result import OLDEST_SCHEMA, SCHEMA_NUMBER, Result
from pipelines.stages import StageEntry

SCORES = "scores.json"


class DemoDescription(TypedDict):
    """How much a demo did, and its stages."""

    full: bool
    arm_steps: int
    batch_size: int
    precision: str
    stages: list[StageEntry]


class DemoScores(Result):
    """What `scores.json` holds."""

    demo: DemoDescription


def write_scores(out: Path, result: Result, demo: DemoDescription) -> None:
    """Write `scores.json` into the demo's folder."""
    scores: DemoScores = {**result, "demo": demo}
    write_document(out / SCORES, scores)


def read_demo(run: Path) -> DemoDescription | None:
    """Read what a run's `scores.json` says of the demo, or None where the run is none."""
    file = run / SCORES
    if not file.is_file():
        return None
    document = read_document(file, SCHEMA_NUMBER, "start `medalign demo` again", OLDEST_SCHEMA)
    return cast("DemoDescription | None", document.get("demo"))
