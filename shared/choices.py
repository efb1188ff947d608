"""The answers that a question offers, in the forms that public sets write them."""

import ast
import json
import re
from collections.abc import Mapping

# Where a lettered choice begins: behind a comma, a line feed or wide white space, else behind any.
_MARKS = tuple(
    re.compile(rf"(?:^|{before})\(?([A-Za-z])[.):]\s*")
    for before in (r"[,;\n]\s*|\s{2,}", r"[,;]?\s+")
)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BETWEEN = ("\n", ";", "|", ",", " or ", "/")


def options_of(value: object, reference: object = None) -> tuple[str, ...]:
    """Return the answers offered; none for what holds no word, such as a dash.

    Read are a list, a mapping by letter, and one text: a written list (`['Chest', 'Abdomen']`),
    lettered choices (MedHEval's "A. Chest, B. Abdomen", "(a) chest (b) abdomen"), or choices apart
    by line feeds, semicolons, bars, commas, "or" or a slash, where the `reference` answer is one of
    them. Any other text is one choice. Letters stay in front of their choice.
    """
    if isinstance(value, list | tuple):
        return tuple(str(option) for option in value)
    if isinstance(value, Mapping):
        return tuple(f"{letter}. {option}" for letter, option in value.items() if option)
    if not isinstance(value, str) or not re.search(r"\w", value):
        return ()
    return _options_of_text(value.strip(), reference) or (value,)


def _options_of_text(text: str, reference: object) -> tuple[str, ...]:
    if text[0] == "[" and text[-1] == "]":
        listed = _written_list(text)
        if listed:
            return options_of(listed)
        text = text[1:-1].strip()
    for mark in _MARKS:
        options = _lettered(text, mark)
        if options:
            return options
    true = str(reference).strip().casefold()
    for between in _BETWEEN:
        options = tuple(piece.strip() for piece in text.split(between) if piece.strip())
        if len(options) > 1 and true in (option.casefold() for option in options):
            return options
    return ()


def _written_list(text: str) -> list[object] | None:
    """Read a list as JSON or Python writes it."""
    try:
        listed = json.loads(text)
    except ValueError:
        try:
            listed = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return None
    return listed if isinstance(listed, list) else None


def _lettered(text: str, mark: re.Pattern[str]) -> tuple[str, ...]:
    """Split at the letters A, B, ... where they stand in their order, and the first begins."""
    marks = list(mark.finditer(text))
    letters = "".join(found.group(1) for found in marks)
    first = _LETTERS[: len(marks)]
    if len(marks) < 2 or marks[0].start() > 0 or letters not in (first, first.lower()):
        return ()
    ends = [*(found.start() for found in marks[1:]), len(text)]
    return tuple(
        f"{found.group(1).upper()}. {text[found.end() : end].strip().rstrip(',;')}"
        for found, end in zip(marks, ends, strict=True)
    )
