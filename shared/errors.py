"""Errors that speak to the user.

Apart from the console, so that reading a target loads no command line.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend; its one line names the way out.

    A command prints it and exits with 1.
    """


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the one of `known` that `name` is most likely a slip of, None where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return near[0] if near else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Say `did you mean X?` of the nearest known name; `otherwise` where none is near."""
    near = nearest(name, known)
    return otherwise if near is None else f"did you mean {near}?"
