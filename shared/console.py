"""How every command speaks.

One-line errors with the way out, progress with rate and ETA, machine-readable reports.
"""

import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated, NamedTuple, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

from shared.errors import UserError
from shared.repeats import once

T = TypeVar("T")

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead of text.")
]

stdout = Console(soft_wrap=True, highlight=False, emoji=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # may come without a file's name


def run(app: typer.Typer, name: str) -> None:
    """Run a Typer application as the console script `name`.

    `UserError` becomes one line and exit code 1, and so does what the system refuses of a file.

    `--debug` anywhere on the command line (or `MEDALIGN_DEBUG=1`) shows the traceback as well.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1 or os.environ.get("MEDALIGN_DEBUG") == "1"
    try:
        once(app)(arguments, prog_name=name)
    except UserError as error:
        if debug:
            traceback.print_exc()
        stderr.print(f"[bold red]error:[/] {_escape(str(error))}")
        sys.exit(1)
    except OSError as error:
        # A file that the system refuses: the user's to mend, whatever command it stopped.
        named = error.filename is not None or error.errno in _NO_ROOM
        if not named or isinstance(error, BrokenPipeError):
            raise
        if debug:
            traceback.print_exc()
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        reason = f"{place}{error.strerror}; --debug shows what wanted it"
        stderr.print(f"[bold red]error:[/] {_escape(reason)}")
        sys.exit(1)


def _escape(text: str) -> str:
    """Keep a message on one line, whatever a file name holds."""
    line = "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode()
        for one in _printable(text)
    )
    return line.replace("[", r"\[")


def _printable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def say(text: str) -> None:
    """Print one line for a person; markup is not interpreted.

    A file name that is not UTF-8 is shown with its bytes as hexadecimal digits.
    """
    stdout.print(_printable(text), markup=False)


def note(text: str) -> None:
    """Print one line to standard error: what is under way, beside a report on standard output."""
    stderr.print(_printable(text), markup=False)


def warn(text: str) -> None:
    """Print one warning line to standard error."""
    stderr.print(f"[yellow]warning:[/] {_escape(text)}")


@contextmanager
def resumable() -> Iterator[None]:
    """Say at Ctrl-C that nothing finished is lost, in a command that goes on when run again."""
    try:
        yield
    except KeyboardInterrupt:
        note("stopped; what is finished is safe, and the same command goes on from there")
        sys.exit(130)


def report(data: Mapping[str, object], as_json: bool, lines: Iterable[str]) -> None:
    """Print `data` as one JSON document (`--json`), or `lines` for a person."""
    if as_json:
        sys.stdout.write(json.dumps(data, indent=2, default=str) + "\n")
    else:
        for line in lines:
            say(line)


def size(count: float) -> str:
    """Write a number of bytes for a person, in powers of 1000: 331.2 kB, 1.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class Pace(NamedTuple):
    """How fast work goes, and how long the rest takes; the bar and the log line say the same.

    Both None in the first second, in which things come in bursts.
    """

    rate: float | None  # units a second, over all the time since the work began
    left: timedelta | None

    def text(self, unit: str) -> str:
        """Write it for a person; nothing where nothing is known yet."""
        if self.rate is None or self.left is None:
            return ""
        digits = 0 if self.rate >= 100 else 2
        return f"{self.rate:.{digits}f} {unit}/s, {self.left} left"


def pace(done: float, to_do: float, seconds: float) -> Pace:
    """Return the pace of work of which `done` units took `seconds` and `to_do` are left."""
    if seconds < 1 or done <= 0:
        return Pace(None, None)
    return Pace(done / seconds, timedelta(seconds=round(to_do * seconds / done)))


class _PaceColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        seconds = (task.finished_time if task.finished else task.elapsed) or 0.0
        done = task.completed - task.fields.get("before", 0)
        to_do = (task.total or 0) - task.completed
        return Text(pace(done, to_do, seconds).text(task.fields["unit"]))


def progress() -> Progress:
    """Progress bars on standard error with count, rate and time left, in 80 columns.

    `add_task(..., unit=...)` names the rate; `before` is how much an earlier process had done.

    Where standard error is no terminal, `track` prints a plain line now and then instead.
    """
    columns = (  # the bar alone gives way
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        _PaceColumn(table_column=Column(no_wrap=True)),
    )
    return Progress(*columns, console=stderr, disable=not stderr.is_terminal)


def track(items: Iterable[T], total: int, description: str, unit: str = "items") -> Iterator[T]:
    """Yield `items` under a progress bar.

    In a log file, a line now and then with rate and time left. More items than `total`, such as
    files that came meanwhile, raise it.
    """
    with progress() as bars:
        task = bars.add_task(description, total=total, unit=unit)
        begin = shown = time.monotonic()
        for count, item in enumerate(items, start=1):
            yield item
            total = max(total, count)
            bars.update(task, completed=count, total=total)
            now = time.monotonic()
            # Every few seconds at first, then every tenth of the time so far: ten days of work fill
            # no disk with lines.
            if not stderr.is_terminal and now - shown > max(5.0, 0.1 * (now - begin)):
                shown = now
                said = pace(count, total - count, now - begin).text(unit)
                stderr.print(f"{description}: {count}/{total}, {said}", markup=False)
