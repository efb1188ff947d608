"""The command `medalign`: what spans both stages.

`medalign cache` and `medalign student` are the stages' own commands.

Every command's body lives in the module of its own room; those modules import nothing heavy before
they are called, so that `medalign --help` answers at once.
"""

import typer

from pipelines.datasets.commands import app as data_app
from pipelines.demo.commands import demo_command, demo_student_command, quickstart_command
from pipelines.evaluation.chat_command import chat_command
from pipelines.evaluation.commands import evaluate_command, generate_command
from pipelines.evaluation.score_commands import compare_command, score_command
from pipelines.explore.commands import explore_command
from pipelines.figures.commands import app as figures_app
from pipelines.recipes.commands import app as recipes_app
from pipelines.regions.cache import app as cache_app
from pipelines.regions.commands import alignment_command, oracle_command
from pipelines.report.commands import app as report_app
from pipelines.serve.commands import serve_command
from pipelines.statistics.commands import plan_test_command
from pipelines.sweep.commands import sweep_command
from pipelines.training.commands import app as student_app
from shared.console import run

app = typer.Typer(
    name="medalign",
    help="Alignment distillation for medical vision-language models, from images to scores.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("quickstart")(quickstart_command)
app.command("demo")(demo_command)
app.command("demo-student")(demo_student_command)
app.command("generate")(generate_command)
app.command("chat")(chat_command)
app.command("serve")(serve_command)
app.command("evaluate")(evaluate_command)
app.command("alignment")(alignment_command)
app.command("oracle")(oracle_command)
app.command("explore")(explore_command)
app.command("score")(score_command)
app.command("compare")(compare_command)
app.command("plan-test")(plan_test_command)
app.command("sweep")(sweep_command)
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")
app.add_typer(report_app, name="report")
app.add_typer(figures_app, name="figures")
app.add_typer(cache_app, name="cache")
app.add_typer(student_app, name="student")


def main() -> None:
    """Run the console script."""
    run(app, "medalign")
