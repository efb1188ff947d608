"""`medalign student`: the commands of `student`, with a teacher and the scores at hand while training."""

from pathlib import Path
from typing import Annotated

import typer

from shared.console import report
from student_train import cli as student

app = typer.Typer(help=student.app.info.help, no_args_is_help=True)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as train.epochs=3.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the output folder's last checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check data, store, model and memory; train nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Fine-tune by a recipe, as `student train`; missing targets can be computed, and scores choose the checkpoint."""
    from pipelines.training import scorer, target_computer
    from shared.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    compute_target, score = target_computer(loaded), scorer(loaded)
    if dry_run:
        from student_train.dry_run import dry_run as check

        found = check(loaded, compute_target)
        report(found, as_json, [f"{name}: {value}" for name, value in found.items()])
        return
    from student_train.environment import is_main_process
    from student_train.train import train as start

    output = start(loaded, compute_target=compute_target, score=score, resume=resume)
    if as_json and is_main_process():
        report({"output": str(output)}, True, [])


app.command()(student.inspect)
app.command()(student.export)
