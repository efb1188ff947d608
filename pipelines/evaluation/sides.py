"""Words that name a side, and what they become in a mirror."""

import dataclasses
import re
from typing import Literal

from shared.records import Record

Side = Literal["left", "right"]

_PAIRS = (("left", "right"), ("lt", "rt"), ("左", "右"))
_LEFT = {left for left, _ in _PAIRS}
_OTHER = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}
# "left", "left-sided", "leftward" and "leftmost", but not "leftover" or "upright".
_SIDE = re.compile(
    r"(?<![^\W_])(?:(left|right)(?=(?:wards?|most|sided)?(?![^\W_]))|(lt|rt)(?![^\W_]))|([左右])",
    re.IGNORECASE,
)


def names_side(text: str) -> bool:
    """Whether a text names the left or the right."""
    return _SIDE.search(text) is not None


def side_named(text: str) -> Side | None:
    """Return the one side that a text names; None where it names none, or both."""
    sides: set[Side] = {
        "left" if found.group().lower() in _LEFT else "right" for found in _SIDE.finditer(text)
    }
    return sides.pop() if len(sides) == 1 else None


def swapped(text: str) -> str:
    """Return a text with left and right exchanged, their case kept."""
    return _SIDE.sub(lambda found: _like(found.group(), _OTHER[found.group().lower()]), text)


def mirrored_record(record: Record) -> Record:
    """Return what is asked of the mirrored images: every side in its texts exchanged."""
    turns = tuple(turn._replace(text=swapped(turn.text)) for turn in record.turns)
    options = tuple(swapped(option) for option in record.options)
    system = swapped(record.system)
    return dataclasses.replace(record, turns=turns, options=options, system=system)


def _like(model: str, word: str) -> str:
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word
