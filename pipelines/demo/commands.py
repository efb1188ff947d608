"""`medalign quickstart`, `demo` and `demo-student`: their flags."""

from pathlib import Path
from typing import Annotated

import typer

from shared.console import say
from shared.errors import UserError


def quickstart_command(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("runs/quickstart"),
) -> None:
    """Cache, train and look, in two minutes on two cores; nothing is downloaded.

    Real MRI slices, a small teacher, a tiny student with random weights. It prints its commands,
    asserts that the held-out L_vis falls by 30%, and writes OUT/index.html.
    """
    from pipelines.demo.quickstart import run_quickstart

    run_quickstart(out)


def demo_command(
    full: Annotated[
        bool, typer.Option("--full", help="Train ten times as long: two hours on two cores.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Default: runs/demo, or runs/demo-full.")] = None,
) -> None:
    """Run the whole pipeline on real MRI slices.

    The same steps on every machine, 15 minutes on two cores; report in runs/demo/report.html.

    Every step is a command that is printed before it runs. Interrupted, it continues with the step
    it was in; remove the folder to start over.
    """
    from pipelines.demo.pipeline import FULL, SHORT, run_demo

    budget = FULL if full else SHORT
    run_demo(out or Path("runs") / budget.name, budget)


def demo_student_command(
    out: Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.")],
    atlas: Annotated[
        Path | None, typer.Option(help="Folder of `medalign data prepare brain-atlas`.")
    ] = None,
    chest: Annotated[
        Path | None, typer.Option(help="Folder of `medalign data prepare nih-rsna`.")
    ] = None,
    part: Annotated[
        str, typer.Option(help="With --chest: the part whose test patients it must not see.")
    ] = "choose",
    vision_layers: Annotated[
        int, typer.Option(min=1, max=12, help="With --chest: layers of the ViT-S/14 as its tower.")
    ] = 6,
) -> None:
    """Build the small student of the demo, or of the study on X-rays, from packaged weights.

    Its projector starts from a ridge regression.
    """
    if (atlas is None) == (chest is None):
        raise UserError("give either --atlas (the demo's set) or --chest (the study's)")
    if chest is not None:
        from pipelines.demo.chest import build_chest_student

        build_chest_student(chest, part, out, vision_layers)
    elif atlas is not None:
        from pipelines.demo.student import build_student

        build_student(atlas, out)
    say(f"done: {out}")
