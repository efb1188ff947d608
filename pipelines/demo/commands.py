"""`medalign demo` and `medalign demo-student`: their flags."""

from pathlib import Path
from typing import Annotated

import typer

from shared.console import say


def demo_command(
    full: Annotated[
        bool, typer.Option("--full", help="Train longer: two hours at most on two cores.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Default: runs/demo, or runs/demo-full.")] = None,
) -> None:
    """Run the whole pipeline on real MRI slices.

    15 minutes at most on two cores, report in runs/demo/report.html.

    Every step is a command that is printed before it runs. Interrupted, it continues with the step
    it was in; remove the folder to start over.
    """
    from pipelines.demo.pipeline import FULL, SHORT, run_demo

    budget = FULL if full else SHORT
    run_demo(out or Path("runs") / budget.name, budget)


def demo_student_command(
    atlas: Annotated[Path, typer.Option(help="Folder of `medalign data prepare brain-atlas`.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.")],
) -> None:
    """Build the demo's small student from packaged weights.

    Its projector starts from a ridge regression.
    """
    from pipelines.demo.student import build_student

    build_student(atlas, out)
    say(f"done: {out}")
