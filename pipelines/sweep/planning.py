"""How long the rest of a study takes, from the runs that are finished."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TypedDict

from pipelines.sweep.ledger import read_run
from pipelines.sweep.study import Run


class Plan(TypedDict):
    """What is missing; `hours` with `jobs` at a time, None before the first run is timed."""

    runs: int
    finished: int
    missing: list[str]
    minutes_a_run: float | None
    jobs: int
    hours: float | None


def plan_of(runs: Sequence[Run], results: Path, jobs: int) -> Plan:
    """Count what is missing and time it by the median of what is finished."""
    found = {run.name: read_run(results, run) for run in runs}
    seconds = [sum(one["seconds"].values()) for one in found.values() if one is not None]
    missing = [name for name, one in found.items() if one is None]
    minutes = median(seconds) / 60 if seconds else None
    return {
        "runs": len(runs),
        "finished": len(seconds),
        "missing": missing,
        "minutes_a_run": minutes,
        "jobs": jobs,
        "hours": None if minutes is None else minutes * len(missing) / 60 / jobs,
    }


def plan_lines(plan: Plan) -> Iterator[str]:
    """Return the plan as text."""
    yield f"{plan['finished']} of {plan['runs']} runs are finished"
    if plan["hours"] is None:
        yield "no run is finished: run one (--only ARM-PART) to time the rest"
    else:
        yield (
            f"{plan['minutes_a_run']:.1f} minutes a run; {len(plan['missing'])} are missing: "
            f"{plan['hours']:.1f} hours with {plan['jobs']} at a time"
        )
    for name in plan["missing"]:
        yield f"  {name}"
