"""`medalign`: every command is there, and asking for help loads no model library."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from pipelines.cli import app

COMMANDS = (
    "quickstart",
    "demo",
    "demo-student",
    "generate",
    "evaluate",
    "compare",
    "report",
    "data",
    "cache",
    "student",
)


@pytest.mark.unit
def test_every_command_is_listed_and_has_help() -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["--help"], terminal_width=200).output
    for command in COMMANDS:
        assert f" {command} " in listed
        assert runner.invoke(app, [command, "--help"]).exit_code == 0, command
    for inner in (
        ["cache", "build"],
        ["cache", "audit"],
        ["student", "train"],
        ["data", "prepare"],
    ):
        assert runner.invoke(app, [*inner, "--help"]).exit_code == 0, inner


@pytest.mark.integration
def test_help_loads_no_model_library() -> None:
    code = (
        "import sys, pipelines.cli\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'peft', 'open_clip', 'timm', 'matplotlib'} "
        "& set(sys.modules)\n"
        "sys.exit(' '.join(sorted(heavy)) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
