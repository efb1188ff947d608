"""`medalign`: every command is there, and asking for help loads no model library."""

import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from typer.testing import CliRunner

from pipelines.cli import app

COMMANDS = (
    "quickstart",
    "demo",
    "demo-student",
    "generate",
    "chat",
    "evaluate",
    "explore",
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


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "completed"),
    [("medalign recipes c", "copy"), ("cache v", "verify"), ("student ti", "tiny")],
)
def test_a_shell_completes_commands(words: str, completed: str) -> None:
    name, *rest = words.split()
    asked = {
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(rest)),
        f"_{name.upper()}_COMPLETE": "complete_bash",
    }
    place = next(one for one in entry_points(group="console_scripts") if one.name == name).value
    module, _, function = place.partition(":")
    code = f"import sys; sys.argv = ['{name}']; from {module} import {function}; {function}()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed in done.stdout.split()
