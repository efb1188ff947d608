"""Which items a filter lets through, a page at a time."""

import time
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from pipelines.explore.fields import Fields
from pipelines.explore.table import BLOCK, KINDS, RIGHT, WRONG, Table, number_of
from shared.errors import UserError

Turn = Literal["gained", "lost", "verdicts", "texts", "right", "wrong"]
TURNS: tuple[Turn, ...] = get_args(Turn)
Mask = NDArray[np.bool_]


class Filter(NamedTuple):
    """What items must be; None or empty lets every item through.

    Attributes
    ----------
    kind
        `open`, `closed`, `choice` or `report`.
    turn
        `gained`: wrong in row `a`, right in row `b`; `lost`: the reverse. Over all rows:
        `verdicts`: some right and some wrong; `texts`: not all say the same; `right`, `wrong`: all.
    a, b
        Rows, by place.
    cluster
        Name of a cluster, such as a patient.
    field, value
        A field of the records and its value.
    """

    kind: str = ""
    turn: str = ""
    a: int = 0
    b: int = 0
    cluster: str = ""
    field: str = ""
    value: str = ""


class Found(NamedTuple):
    """A page of places of items; `following` is where the search goes on, None at the end."""

    places: list[int]
    following: int | None
    searched: int  # items looked at


def search(
    table: Table, wanted: Filter, fields: Fields, start: int, count: int, seconds: float = 0.4
) -> Found:
    """Find `count` items from place `start` on, or as many as there are in `seconds`.

    Raises
    ------
    UserError
        No such kind, turn, row, field or value; or as `Table.items`.
    """
    tests = _tests(table, wanted, fields)
    if not tests:
        stop = min(start + count, table.total)
        return Found(list(range(start, stop)), stop if stop < table.total else None, stop - start)
    until = time.monotonic() + seconds
    places: list[int] = []
    here = start
    while here < table.total:
        number, begin = here // BLOCK, here % BLOCK
        through = np.logical_and.reduce([test(number) for test in tests])
        found = np.flatnonzero(through[begin:]) + here
        places += found[: count - len(places)].tolist()
        here = min((number + 1) * BLOCK, table.total)
        if len(places) == count:
            here = places[-1] + 1
            break
        if time.monotonic() > until:
            break
    return Found(places, here if here < table.total else None, here - start)


def _tests(table: Table, wanted: Filter, fields: Fields) -> list[Callable[[int], Mask]]:
    """Return a function of the block's number for each part of the filter, cheap ones first."""
    tests: list[Callable[[int], Mask]] = []
    if wanted.field:
        tests.append(fields.test(wanted.field, wanted.value))
    if wanted.kind:
        kind = _one_of(wanted.kind, KINDS, "kind")
        tests.append(lambda number: table.block(0, number).kinds == kind)
    if wanted.cluster:
        cluster = number_of(wanted.cluster)
        tests.append(lambda number: table.block(0, number).clusters == cluster)
    if wanted.turn:
        turn = TURNS[_one_of(wanted.turn, TURNS, "turn")]
        tests.append(lambda number: _turned(table, turn, wanted.a, wanted.b, number))
    rows = len(table.names)
    if not (0 <= wanted.a < rows and 0 <= wanted.b < rows):
        raise UserError(f"rows are numbered 0 to {rows - 1}, not {wanted.a} and {wanted.b}")
    return tests


def _turned(table: Table, turn: Turn, a: int, b: int, number: int) -> Mask:
    if turn in ("gained", "lost"):
        first, last = (a, b) if turn == "gained" else (b, a)
        before, after = table.block(first, number).verdicts, table.block(last, number).verdicts
        turned: Mask = (before == WRONG) & (after == RIGHT)
        return turned
    blocks = [table.block(row, number) for row in range(len(table.names))]
    if turn == "texts":
        texts = np.stack([one.texts for one in blocks])
        differ: Mask = (texts != texts[0]).any(axis=0)
        return differ
    verdicts = np.stack([one.verdicts for one in blocks])
    right: Mask = (verdicts == RIGHT).all(axis=0)
    wrong: Mask = (verdicts == WRONG).all(axis=0)
    if turn == "verdicts":
        mixed: Mask = (verdicts == RIGHT).any(axis=0) & ~right
        return mixed
    return right if turn == "right" else wrong


def _one_of(name: str, known: tuple[str, ...], what: str) -> int:
    if name not in known:
        raise UserError(f"no {what} {name!r}; there are {', '.join(known)}")
    return known.index(name)
