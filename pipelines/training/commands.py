"""`medalign student`.

The commands of `student`, with a teacher and the scores at hand while training.
"""

import typer

from student_train import cli as student

app = typer.Typer(help=student.app.info.help, no_args_is_help=True)


@app.command("train")
def train_command(
    recipe: student.RecipeFile,
    overrides: student.Overrides = None,
    resume: student.Resume = False,
    dry_run: student.DryRun = False,
    as_json: student.AsJson = False,
) -> None:
    """Fine-tune by a recipe, as `student train`.

    Missing targets can be computed, and scores choose the checkpoint.
    """
    from pipelines.training.callables import scorer, target_computer

    student.run_training(
        recipe,
        overrides,
        resume,
        dry_run,
        as_json,
        lambda loaded: (target_computer(loaded), scorer(loaded)),
    )


app.command("inspect")(student.inspect_command)
app.command("export")(student.export_command)
app.command("tiny")(student.tiny_command)
