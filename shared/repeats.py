"""An option that is given twice is refused, where the parser would take the last in silence."""

from collections import Counter
from collections.abc import Callable
from typing import Protocol, cast

import typer
import typer.main

from shared.errors import UserError


class _Parameter(Protocol):
    param_type_name: str
    multiple: bool
    opts: list[str]


class _Context(Protocol):
    resilient_parsing: bool


class _Parser(Protocol):
    def parse_args(self, args: list[str]) -> tuple[object, object, list[_Parameter]]: ...


class _Command(Protocol):
    parse_args: Callable[[_Context, list[str]], list[str]]

    def make_parser(self, ctx: _Context) -> _Parser: ...

    def __call__(self, args: list[str], prog_name: str) -> object: ...


def once(app: typer.Typer) -> _Command:
    """Return the application's command, in which a single option may be given once.

    The command raises a `UserError` for `--store A --store B`, where B alone would be read.
    """
    command = cast("_Command", typer.main.get_command(app))
    _guard(command)
    return command


def _guard(command: _Command) -> None:
    inner: dict[str, _Command] = getattr(command, "commands", {})
    for one in inner.values():
        _guard(one)
    if inner:
        return
    read = command.parse_args

    def parse_args(ctx: _Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # a shell's completion
            order = command.make_parser(ctx).parse_args(args=list(args))[2]
            single = [one for one in order if one.param_type_name == "option" and not one.multiple]
            for name, count in Counter(one.opts[0] for one in single).items():
                if count > 1:
                    raise UserError(f"{name} is given {count} times, and takes one; give it once")
        return read(ctx, args)

    command.parse_args = parse_args
