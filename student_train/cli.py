"""Command `student`: train, inspect, export, tiny."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.console import report, run
from shared.vocabulary import WeightsDtype

if TYPE_CHECKING:
    from shared.recipe import Recipe
    from student_train.data.join import ComputeTargets
    from student_train.run.evaluation import Score

    Callables = tuple[ComputeTargets | None, Score | None]

app = typer.Typer(
    help="""Stage two: fine-tune the medical vision-language model, streaming the teacher's targets.

    Begin with `train RECIPE --dry-run`. Recipes are in pipelines/recipes, and docs/recipe.md
    explains every key; `--debug` behind any command shows a traceback with its error.""",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


RecipeFile = Annotated[
    Path, typer.Argument(help="Recipe (YAML), such as pipelines/recipes/llava-med-slake.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value, such as data.train=train.json train.epochs=3."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue from the output folder's last checkpoint.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check data, store, model and memory; train nothing.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Report as JSON.")]


@app.command("train")
def train_command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune by a recipe; works alone and under `torchrun` or `deepspeed`.

    Writes an adapter folder to the recipe's `output`, which `student_train.load` and `medalign
    evaluate` read. Stopped by SIGTERM or Ctrl-C it saves a checkpoint and prints the command that
    goes on from it.
    """
    run_training(recipe, overrides, resume, dry_run, as_json)


def run_training(
    path: Path,
    overrides: list[str] | None,
    resume: bool,
    only_check: bool,
    as_json: bool,
    callables: "Callable[[Recipe], Callables] | None" = None,
) -> None:
    """Do what the command `train` says.

    `callables` gives, for a recipe, the teacher and the scores that only `pipelines` has.
    """
    from shared.recipe import load_recipe

    recipe = load_recipe(path, overrides or [])
    if callables is not None:
        from student_train.run.beginning import chosen_targets

        recipe = chosen_targets(recipe, path, resume)
    compute_targets, score = (None, None) if callables is None else callables(recipe)
    if only_check:
        from student_train.run.dry_run import dry_run

        found = dry_run(recipe, compute_targets, resume, path, score is not None)
        report(found, as_json, [f"{name}: {value}" for name, value in found.items()])
        return
    from shared.processes import is_main_process
    from student_train.run.train import train

    output = train(
        recipe, compute_targets=compute_targets, score=score, resume=resume, repeats=path
    )
    if as_json and is_main_process():
        report({"output": str(output)}, True, [])


@app.command("inspect")
def inspect_command(
    of: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|MODEL",
            help="Output folder of `student train`, a checkpoint in it, or a model: its name, "
            "folder or hub id.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Show what an adapter folder holds, or what a model is.

    Of an adapter: sizes, ranks, norms of W, losses. Of a model: image, grid, layers, width, and
    the `cache build` line of its targets.
    """
    from student_train.run.inspect import inspect, inspect_model, is_model

    found = inspect_model(of) if is_model(of) else inspect(Path(of))
    report(found, as_json, [f"{name}: {value}" for name, value in found.items()])


@app.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(help="Output folder of `student train`.")],
    to: Annotated[Path, typer.Option("--to", help="New folder for the merged model.")],
    base: Annotated[
        str | None, typer.Option("--base", help="Where the base model is now, if it has moved.")
    ] = None,
    dtype: Annotated[
        WeightsDtype,
        typer.Option("--dtype", help="Of the merged weights; auto: as the base is stored."),
    ] = "auto",
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            help="Upload the result under this hub id, as a private repository; HF_TOKEN is the "
            "token.",
        ),
    ] = None,
) -> None:
    """Merge LoRA into the base model; W stays beside it and `student_train.load` loads both."""
    from student_train.adapter.export import export, push
    from student_train.models.dtype import dtype_named

    export(folder, to, base, dtype_named(dtype))
    if push_to_hub is not None:
        push(to, push_to_hub)


@app.command("tiny")
def tiny_command(
    out: Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.")],
    grid: Annotated[
        str, typer.Option(help="Patches that it sees, a square: rows x columns.")
    ] = "12x12",
    width: Annotated[int, typer.Option(help="Of the decoder, a multiple of 8.")] = 64,
    layers: Annotated[int, typer.Option(help="Of the decoder.")] = 4,
    seed: Annotated[int, typer.Option(help="Of its random weights.")] = 0,
) -> None:
    """Write a small student with random weights in LLaVA's layout, to try every command with.

    `model.name` of a recipe takes the folder.
    """
    from shared.console import say
    from shared.imaging.grid import Grid
    from student_train.models.tiny import write_tiny_student

    write_tiny_student(out, Grid.parse(grid), width=width, layers=layers, seed=seed)
    say(f"done: {out}, {grid} patches, {layers} layers of width {width}, random weights")


def main() -> None:
    """Console script `student`."""
    run(app, "student")


if __name__ == "__main__":
    main()
