"""How commands speak: one line an error, progress in a log file, names as they are."""

import io
import itertools
import json
import os
import re
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from rich.console import Console
from rich.progress import Progress

from shared import console
from shared.errors import UserError

pytestmark = pytest.mark.unit


def _program() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise UserError("no [bold]file[/] here; give another")

    return app


def _fail(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit) as ended:
        console.run(_program(), "program")
    assert ended.value.code == 1


def test_an_error_is_one_line_as_it_was_written(monkeypatch, capsys):
    _fail(monkeypatch)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: no [bold]file[/] here; give another\n")


def test_a_name_with_a_line_feed_stays_on_one_line(capsys):
    console.warn("a\nb\u2028c\x1b[31m.png: no image")
    assert capsys.readouterr().err == "warning: a\\nb\\u2028c\\x1b[31m.png: no image\n"


def test_what_the_system_refuses_of_a_file_is_one_line_too(monkeypatch, capsys, tmp_path):
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        (tmp_path / "nowhere" / "file").read_text()

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as ended:
        console.run(app, "program")
    assert ended.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    said = "No such file or directory; --debug shows what wanted it"
    assert line == f"error: {tmp_path}/nowhere/file: {said}"


def test_what_is_no_file_of_the_users_keeps_its_traceback(monkeypatch, capsys):
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        with socket.socket() as mine:
            mine.bind(("127.0.0.1", 0))  # nobody listens there
            socket.create_connection(mine.getsockname())

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(ConnectionRefusedError):
        console.run(app, "program")
    assert "error:" not in capsys.readouterr().err


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_debug_shows_the_traceback_before_it(monkeypatch, capsys, by):
    if by == "variable":
        monkeypatch.setenv("MEDALIGN_DEBUG", "1")
    _fail(monkeypatch, *(["--debug"] if by == "flag" else []))
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert last == "error: no [bold]file[/] here; give another"


def test_a_log_file_gets_a_line_now_and_then_with_rate_and_time_left(monkeypatch, capsys):
    """4 s an item: a line every second item, later every tenth of the time so far."""
    ticks = iter(range(1000, 5000, 4))
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    assert list(console.track(range(100), 100, "encoding", "images")) == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "encoding: 2/100, 0.25 images/s, 0:06:32 left"
    assert lines[1] == "encoding: 4/100, 0.25 images/s, 0:06:24 left"
    counts = [int(line.split()[1].partition("/")[0]) for line in lines]
    later = [(a, b) for a, b in itertools.pairwise(counts) if b > 20]
    assert all(0.1 * b < b - a <= 0.1 * b + 1 for a, b in later)


def test_a_report_is_lines_or_one_document(capsys):
    console.report({"path": os.sep, "n": 2}, False, ["a [b] c", "d"])
    assert capsys.readouterr().out == "a [b] c\nd\n"
    console.report({"path": os.sep, "n": 2}, True, ["unused"])
    assert json.loads(capsys.readouterr().out) == {"path": os.sep, "n": 2}


def test_a_name_that_is_not_utf_8_is_shown_by_its_bytes(capsys):
    console.say("a" + os.fsdecode(b"\xff"))
    console.warn("b" + os.fsdecode(b"\xfe"))
    out, err = capsys.readouterr()
    assert (out, err) == ("a\\xff\n", "warning: b\\xfe\n")


def test_a_full_disk_names_no_file_and_is_one_line_too(monkeypatch, capsys):
    app = typer.Typer()

    @app.command()
    def write() -> None:
        with Path("/dev/full").open("w") as full:
            full.write("x")

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit):
        console.run(app, "program")
    assert "error: No space left on device; --debug shows" in capsys.readouterr().err


def test_ctrl_c_says_that_nothing_is_lost(capsys):
    with pytest.raises(SystemExit) as ended, console.resumable():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert "what is finished is safe" in capsys.readouterr().err


def test_sizes_are_in_powers_of_1000_everywhere():
    sizes = [console.size(n) for n in (0, 999, 331_200, 24 * 2**30, 2e15)]
    assert sizes == ["0 B", "999 B", "331.2 kB", "25.8 GB", "2000.0 TB"]
    # No other place makes a number of bytes readable, in another unit.
    root = Path(__file__).resolve().parents[2]
    files = [
        one
        for room in ("shared", "student_train", "teacher_cache", "pipelines")
        for one in (root / room).rglob("*.py")
    ]
    assert not [one for one in files if re.search(r"2 ?\*\* ?[23]0\b|1e[69]:", one.read_text())]


def _drawn(description, total, completed, seconds, unit="images", before=0):
    """Return the bar of a task as a terminal of 80 columns shows it."""
    columns = console.progress().columns
    clock = iter([0.0])
    bars = Progress(*columns, get_time=lambda: next(clock, seconds), auto_refresh=False)
    bars.add_task(description, total=total, completed=before, unit=unit, before=before)
    bars.update(bars.task_ids[0], completed=completed)
    shown = io.StringIO()
    terminal = Console(width=80, file=shown, force_terminal=True, color_system=None)
    terminal.print(bars.get_renderable())
    [line] = shown.getvalue().splitlines()
    assert len(line) <= 80
    return line.split("\u2501")[-1].strip(" \u2578\u257a")


def test_a_bar_fits_80_columns_and_says_what_the_log_says():
    line = _drawn("joining images with the store", 147165, 120000, 60.0)
    assert line == "120000/147165 2000 images/s, 0:00:14 left"
    # What an earlier process had done took none of this one's time.
    assert _drawn("training", 100, 60, 20.0, "steps", 50) == "60/100 0.50 steps/s, 0:01:20 left"
    assert console.pace(10, 40, 20.0).text("steps") == "0.50 steps/s, 0:01:20 left"


def test_a_burst_is_no_rate():
    """Read-ahead gives the first items at once: 147165 files/s would be no news of the rest."""
    assert _drawn("hashing", 200, 100, 0.001, "files") == "100/200"


def test_more_items_than_expected_raise_the_total(monkeypatch, capsys):
    ticks = iter(range(0, 5000, 10))
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    assert list(console.track(range(4), 2, "verifying", "parts")) == [0, 1, 2, 3]
    counts = [line.split()[1].rstrip(",") for line in capsys.readouterr().err.splitlines()]
    assert counts == ["1/2", "2/2", "3/3", "4/4"]
