"""Command `student`: train, inspect, export."""

from pathlib import Path
from typing import Annotated

import typer

from shared.console import report, run

app = typer.Typer(
    help="Stage two: fine-tune the medical vision-language model, streaming the teacher's targets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
    """Fine-tune by a recipe; works alone and under `torchrun` or `deepspeed`."""
    from shared.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if dry_run:
        from student_train.dry_run import dry_run as check

        found = check(loaded)
        report(found, as_json, [f"{name}: {value}" for name, value in found.items()])
        return
    from student_train.environment import is_main_process
    from student_train.train import train as start

    output = start(loaded, resume=resume)
    if as_json and is_main_process():
        report({"output": str(output)}, True, [])


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Output folder of `student train`, or a checkpoint in it.")],
    as_json: Annotated[bool, typer.Option("--json", help="Report as JSON.")] = False,
) -> None:
    """Show what an adapter folder holds: sizes, ranks, norms of W, losses."""
    from student_train.inspect import inspect as look

    found = look(folder)
    report(found, as_json, [f"{name}: {value}" for name, value in found.items()])


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Adapter folder.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write the merged model to.")],
    base: Annotated[str | None, typer.Option("--base", help="Where the base model is now, if it has moved.")] = None,
    push_to_hub: Annotated[
        str | None, typer.Option("--push-to-hub", help="Upload the result under this hub id.")
    ] = None,
) -> None:
    """Merge LoRA into the base model; W stays beside it and `student_train.load` loads both."""
    from student_train.export import export as merge
    from student_train.export import push

    merge(folder, to, base)
    if push_to_hub is not None:
        push(to, push_to_hub)


def main() -> None:
    """Console script `student`."""
    run(app, "student")


if __name__ == "__main__":
    main()
