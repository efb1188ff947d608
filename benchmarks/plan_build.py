"""What `cache plan` foretells, against the build that follows.

    python -m benchmarks.plan_build [--images 112] [--rounds 3]

Each round plans and builds the same images into a new store, in processes of their own, without any
name of an image remembered before. Seconds are the command's, without the start of the interpreter;
the plan's interval is its own, 95%. The seconds of both hang on what else the machine does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cache_build import processor_name, write_images

ROOT = Path(__file__).resolve().parents[1]


class Round(NamedTuple):
    """A plan and its build: seconds and bytes of each, the plan's interval, images probed."""

    planned: float
    low: float
    high: float
    probed: int
    built: float
    planned_bytes: float
    built_bytes: float


def command(scratch: Path, *words: str) -> dict[str, Any]:
    """Run a `cache` command and return what it reports."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "MEDALIGN_CACHE": str(scratch / "cache"),
    }
    line = [sys.executable, "-m", "teacher_cache", *words, "--json"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def plan_and_build(images: Path, scratch: Path) -> Round:
    """Plan a build, build, and compare."""
    store = str(scratch / "store")
    line = ["--teacher", "dinov2-small", "--images", str(images), "--store", store]
    plan = command(scratch, "plan", *line)
    built = command(scratch, "build", *line)
    [described] = command(scratch, "info", "--store", store)["namespaces"]
    low, high = plan["hours_interval"]
    return Round(
        planned=3600 * plan["hours"],
        low=3600 * low,
        high=3600 * high,
        probed=plan["probed"],
        built=built["seconds"],
        planned_bytes=plan["bytes"],
        built_bytes=described["bytes"],
    )


def table(rounds: list[Round]) -> str:
    """Write what was measured as Markdown."""
    lines = [
        "| images probed | plan, s (95% interval) | build, s | build over plan | bytes: build over "
        "plan |",
        "|---|---|---|---|---|",
    ]
    for one in rounds:
        interval = f"{one.planned:.1f} ({one.low:.1f} to {one.high:.1f})"
        share = one.built_bytes / one.planned_bytes
        lines.append(
            f"| {one.probed} | {interval} | {one.built:.1f} | {one.built / one.planned:.2f} | "
            f"{share:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    before = os.getloadavg()[0]
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "images", options.images)
        for number in range(options.rounds):
            rounds.append(plan_and_build(Path(folder) / "images", Path(folder) / str(number)))
            print(rounds[-1], file=sys.stderr, flush=True)
    print(
        f"{processor_name()}, {os.cpu_count()} cores, dinov2-small, {options.images} images; load "
        f"average before {before:.1f}, after {os.getloadavg()[0]:.1f}.\n\n{table(rounds)}"
    )


if __name__ == "__main__":
    main()
