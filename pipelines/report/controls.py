"""What a page shows of an evaluation's controls."""

from collections.abc import Sequence
from typing import TypedDict

from pipelines.evaluation.reliance import under
from pipelines.evaluation.result import Comparison, Controls, Score, Survivor


class RelianceLine(TypedDict):
    """One score of one row under one control; `changed` is there on the first score alone."""

    row: str
    adapter: str
    control: str
    score: str
    value: Score
    loss: Comparison
    changed: Score | None


def reliance_lines(found: Controls | None, names: Sequence[str]) -> list[RelianceLine]:
    """Return a line for each row, control and score of `names`."""
    if found is None:
        return []
    losses = {(one["b"], one["score"]): one for one in found["losses"]}
    lines: list[RelianceLine] = []
    for row in found["rows"]:
        shown = [name for name in names if name in row["scores"]]
        lines += [
            {
                "row": row["row"],
                "adapter": row["row"].partition(" + ")[0],
                "control": row["control"],
                "score": name,
                "value": row["scores"][name],
                "loss": losses[under(row["row"], row["control"]), name],
                "changed": row["changed"] if name == shown[0] else None,
            }
            for name in shown
        ]
    return lines


def survivors(found: Controls | None) -> list[Survivor]:
    """Return the gains that are there on blank images too."""
    return [] if found is None else found["survivors"]
