"""Words of an answer for the strict rule: one spelling for one thing, negated words marked."""

import re
import unicodedata
from decimal import Decimal, InvalidOperation
from functools import cache

from pipelines.metrics.imaging_terms import (
    IRREGULAR_PLURALS,
    SCALES,
    SINGULAR,
    SYNONYMS,
    UNITS,
)

NOT = "not:"  # before each word that the text denies

_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
_ONES = {word: number for number, word in enumerate(_UNITS.split())} | {
    "fifteen": 15,
    "sixteen": 16,
    "seventeen": 17,
    "eighteen": 18,
    "nineteen": 19,
    "none": 0,
}
_TENS = {
    word: 10 * number
    for number, word in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2
    )
}
# Words that carry no fact of their own.
_FILLERS = (
    "a an the is are was were be been it its this that these those there and of in on at to for"
)
_EMPTY = frozenset(_FILLERS.split())
_TOKEN = re.compile(
    r"\d+(?:,\d{3})+(?:\.\d+)?|\d+\.\d+|\.\d+|t[12]w?\b|\d+|"
    r"[^\W\d_](?:\w|'(?=\w))*|%|[.;!?\n,:/&]|\w+"
)
_MARKS = frozenset(".;!?\n,:/&")
_ENDS = frozenset(".;!?\n")
NEGATORS = frozenset(
    {
        "no",
        "not",
        "without",
        "never",
        "neither",
        "nor",
        "cannot",
        "nothing",
        "none",
        "denies",
        "lacks",
    }
)
# What ends a denial inside its sentence.
_TURNS = frozenset(
    {"but", "however", "although", "though", "except", "instead", "rather", "only", "yes"}
)
_CLAUSES = frozenset({"it", "this", "that", "there", "they", "which"})
_AFTER = frozenset({"absent", "excluded", "negative", "none"})  # denies what stands before it
_NO_DENIAL = re.compile(r"\b(?:no|without(?: a)?) doubt\b,?|\bnot only\b|\bno(?:\.|s\.?)? ?(?=\d)")
_NEGATIVE = re.compile(
    r"(?<!not )\b(?:unlikely|improbable)\b|"
    r"\bnegative for\b|\b(?:absence|lack) of\b|\b(?:is |are )?free of\b|\bruled? out\b"
)


def tokens(text: str) -> list[str]:
    """Split a text, lower-cased, into words, numbers and the marks that end a clause."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'").replace("_", " ")
    plain = re.sub(r"(?<=\d)\s*[x\u00d7]\s*(?=\d)", " x ", plain)
    plain = _NO_DENIAL.sub(" ", plain)
    plain = _NEGATIVE.sub(" no ", plain)
    plain = re.sub(r"(\w+)n't\b", r"\1 not", plain).replace("cannot", "can not")
    return _TOKEN.findall(plain)


def words(text: str) -> list[str]:
    """Return the facts of a text in one spelling, none of them marked as denied.

    Number words are digits, units and sizes have one form, plurals are singular, and synonyms of
    `imaging_terms` are one word. Words without a fact of their own go unless nothing else is there.
    """
    return _canonical([token for token in tokens(text) if token not in _MARKS]) or re.findall(
        r"\w+", text.lower()
    )


def facts(text: str) -> list[str]:
    """Return the words of a text, `not:` before those that it denies ("no", "without", ...)."""
    found: list[str] = []
    for said, denied in clauses(text):
        found += [NOT + word if denied else word for word in _canonical(said)]
    return found or words(text)


def clauses(text: str) -> list[tuple[list[str], bool]]:
    """Split a text where a denial begins or ends: its words, and whether they are denied."""
    parts: list[tuple[list[str], bool]] = []
    for sentence in sentences(text):
        parts += _of_sentence(sentence)
    return parts


def sentences(text: str) -> list[list[str]]:
    """Return the tokens of each sentence, its commas and colons among them."""
    found: list[list[str]] = [[]]
    for token in tokens(text):
        if token in _ENDS:
            found.append([])
        else:
            found[-1].append(token)
    return [sentence for sentence in found if sentence]


def _of_sentence(sentence: list[str]) -> list[tuple[list[str], bool]]:
    parts: list[tuple[list[str], bool]] = [([], False)]
    for place, token in enumerate(sentence):
        following = sentence[place + 1] if place + 1 < len(sentence) else ""
        said, denied = parts[-1]
        if token in NEGATORS:
            # "No, the left lung" answers; "pneumonia: none" and "not seen" look back.
            if token != "none" and following and following not in _MARKS:
                if _looks_back(sentence[place:]):
                    _deny_last(parts)
                parts.append(([], True))
            else:
                _deny_last(parts)
        elif token in _AFTER and (said or len(parts) > 1) and following in {"", *_MARKS}:
            _deny_last(parts)
        elif (token == "," and not denied) or (
            denied and (token in _TURNS or (token in _CLAUSES and place and _mark(sentence, place)))
        ):
            parts.append(([], False))
        elif token not in _MARKS:
            said.append(token)
    merged: list[tuple[list[str], bool]] = []
    for said, denied in parts:
        if merged and said and merged[-1][1] == denied:
            merged[-1] = (merged[-1][0] + said, denied)
        elif said:
            merged.append((said, denied))
    return merged


def _deny_last(parts: list[tuple[list[str], bool]]) -> None:
    """Mark the last words as denied: "effusion, not seen" and "effusion: none" look back."""
    for place in reversed(range(len(parts))):
        if parts[place][0]:
            parts[place] = (parts[place][0], True)
            return


def _mark(sentence: list[str], place: int) -> bool:
    return sentence[place - 1] in _MARKS


def _looks_back(rest: list[str]) -> bool:
    """Whether "not seen", "not present" and their like end the sentence or clause."""
    verbs = "seen present visible visualized visualised identified detected noted found evident"
    return rest[0] == "not" and len(rest) > 1 and rest[1] in {*verbs.split(), "correct"}


def _canonical(found: list[str]) -> list[str]:
    counted = _numbers([_singular(token) for token in found])
    merged = _spelled(counted)
    kept = [word for word in merged if word not in _EMPTY]
    return _sizes(kept or merged)


def _singular(word: str) -> str:
    word = IRREGULAR_PLURALS.get(word, word.removesuffix("'s"))
    if word in SINGULAR or len(word) < 4 or not word.isalpha():
        return word
    for ending, least, cut, added in _ENDINGS:
        if word.endswith(ending) and len(word) >= least:
            return word[: len(word) - cut] + added
    return word


# Ending, least length of the word, letters that go, letters that come.
_ENDINGS = (
    ("oses", 8, 2, "is"),
    ("ies", 5, 3, "y"),
    ("sses", 4, 2, ""),
    ("shes", 4, 2, ""),
    ("ches", 5, 2, ""),
    ("xes", 4, 2, ""),
    ("ae", 5, 1, ""),
    ("ss", 2, 0, ""),
    ("us", 2, 0, ""),
    ("is", 2, 0, ""),
    ("s", 2, 1, ""),
)


def _numbers(found: list[str]) -> list[str]:
    """Write number words and spellings of a number as its digits."""
    result: list[str] = []
    for word in found:
        if word in _TENS:
            result.append(str(_TENS[word]))
        elif word in _ONES:
            number = _ONES[word]
            if result and 0 < number < 10 and result[-1] in _SPOKEN_TENS and found:
                result[-1] = str(int(result[-1]) + number)
            else:
                result.append(str(number))
        elif word in _POWERS and result and result[-1].isdecimal():
            result[-1] = str(int(result[-1]) * _POWERS[word])
        elif word[0] in "0123456789.":
            result.append(_plain_number(word))
        else:
            result.append(word)
    return result


_POWERS = {"hundred": 100, "thousand": 1000}
_SPOKEN_TENS = frozenset(str(number) for number in _TENS.values())


def _plain_number(word: str) -> str:
    try:
        number = Decimal(word.replace(",", ""))
    except InvalidOperation:
        return word
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else str(int(number))


@cache
def _spellings() -> dict[tuple[str, ...], list[str]]:
    table: dict[tuple[str, ...], list[str]] = {}
    for name, variants in (SYNONYMS | UNITS).items():
        for variant in variants:
            table[tuple(re.findall(r"[^\s]+", variant))] = name.split()
    return table


def _spelled(found: list[str]) -> list[str]:
    """Replace the longest spelling of a synonym at each place by its one word."""
    table, result, place = _spellings(), [], 0
    longest = max(map(len, table))
    while place < len(found):
        for length in range(min(longest, len(found) - place), 0, -1):
            name = table.get(tuple(found[place : place + length]))
            if name is not None:
                result += name
                place += length
                break
        else:
            result.append(found[place])
            place += 1
    return result


def _sizes(found: list[str]) -> list[str]:
    """Write a number and its unit in the smallest unit of its kind: 3.5 cm is 35 mm."""
    result = list(found)
    for place in range(len(result) - 1):
        unit = SCALES.get(result[place + 1])
        if unit is not None and re.fullmatch(r"\d+(?:\.\d+)?", result[place]):
            number = Decimal(result[place]) * Decimal(unit[1])
            result[place : place + 2] = [_plain_number(f"{number:f}"), unit[0]]
    return result
