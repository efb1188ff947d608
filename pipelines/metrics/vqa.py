"""VQA scores.

Open recall, closed accuracy and multiple choice, under the authors' rule and a strict one.

`authors` is the scoring of LLaVA-Med (`llava/eval/run_eval.py` and `eval_metrics/`), which
MEDALIGN's authors use, its substring faults included. `strict` is the same idea on whole words:

| score  | `authors`                                 | `strict`                                   |
|--------|-------------------------------------------|--------------------------------------------|
| open   | shared words count as often as            | counts are clipped to the reference's      |
|        | *predicted*                               |                                            |
| closed | needs the letters "yes" or "no" anywhere, | the first word yes or no decides; any      |
|        | and the reference as a substring          | other reference must occur word for word   |
| choice | the most similar option, letter by letter | the one option that the prediction names   |
|        | (difflib)                                 |                                            |
"""

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal

Rule = Literal["authors", "strict"]

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD_BEFORE_NO_DIGIT = re.compile(r"\.(?!\d)")
# The original passes the flag re.UNICODE, which is 32, where the count belongs.
_PERIODS_REMOVED = 32
_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
_ARTICLES = frozenset({"a", "an", "the"})

# Spellings of the VQA evaluation's contraction table; its keys are these words with one apostrophe
# left out.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:position] + word[position + 1 :]: word
    for word in _CONTRACTED.split()
    for position, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


def normalize(text: str) -> str:
    """Normalise as LLaVA-Med's `normalize_word` does.

    Punctuation, periods, number words, articles, contractions.
    """
    attached = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in _MARKS:
        beside_blank = mark + " " in text or " " + mark in text
        result = result.replace(mark, "" if beside_blank or attached else " ")
    result = _PERIOD_BEFORE_NO_DIGIT.sub("", result, count=_PERIODS_REMOVED)
    words = [_NUMBERS.get(word, word) for word in result.lower().split()]
    return " ".join(
        _CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES
    ).replace(",", "")


def _strict_words(text: str) -> list[str]:
    """Lower-case words and numbers without punctuation at their edges.

    Articles go unless nothing else is there.
    """
    words = [
        _NUMBERS.get(word, word)
        for word in re.findall(r"\w+(?:[.']\w+)*", text.lower().replace("_", " "))
    ]
    return [word for word in words if word not in _ARTICLES] or words


def open_recall(prediction: str, reference: str, rule: Rule = "authors") -> float:
    """Share of the reference's words found in the prediction, in [0, 1].

    0 where either text has no word.

    `authors`: with tp the prediction's count of every shared word and fn the reference's count of
    every missing one, tp / (tp + fn), so "left lung lung" against "lung right" is 2/3. `strict`:
    shared counts are clipped, 1/2.
    """
    if rule == "authors":
        said = Counter(normalize(normalize(prediction.lower())).split())
        true = Counter(normalize(normalize(reference.lower())).split())
        if not said or not true:
            return 0.0
        found = sum(count for word, count in said.items() if word in true)
        missed = sum(count for word, count in true.items() if word not in said)
        return found / (found + missed) if found else 0.0
    said, true = Counter(_strict_words(prediction)), Counter(_strict_words(reference))
    return (said & true).total() / true.total() if true else 0.0


def closed_correct(prediction: str, reference: str, rule: Rule = "authors") -> bool:
    """Whether a closed question is answered rightly.

    `authors`: the normalised prediction must contain the letters "yes" or "no" ("normal" does) and
    the normalised reference as a substring. `strict`: for a reference yes or no, the prediction's
    first word yes or no must be it; any other reference must occur in the prediction as consecutive
    whole words.
    """
    if rule == "authors":
        said, true = normalize(prediction.lower()), normalize(reference.lower())
        return ("yes" in said or "no" in said) and true in said
    words, wanted = _strict_words(prediction), _strict_words(reference)
    if wanted in (["yes"], ["no"]):
        return next((word for word in words if word in ("yes", "no")), None) == wanted[0]
    return _contains(words, wanted)


def is_yes_no(reference: str) -> bool:
    """Whether the reference is yes or no.

    The paper's closed denominators count only these (355 of SLAKE's 416).
    """
    return _strict_words(reference) in (["yes"], ["no"])


def choice_correct(
    prediction: str, reference: str, options: Sequence[str], rule: Rule = "authors"
) -> bool:
    """Whether the prediction picks the reference among `options` (OmniMedVQA).

    `authors`: prediction and lower-cased reference each pick the first option with the highest
    difflib ratio above 0, and two that pick nothing agree. `strict`: the prediction must name
    exactly one option, by its words or by its letter alone ("B", "(b)", "B. MRI"), and that one
    must be the reference.
    """
    if rule == "authors":
        return _most_similar(prediction, options) == _most_similar(reference.lower(), options)
    picked = _named(prediction, options)
    return picked is not None and _strict_words(options[picked]) == _strict_words(reference)


def _most_similar(text: str, options: Sequence[str]) -> int | None:
    ratios = [SequenceMatcher(None, option, text).ratio() for option in options]
    best = max(ratios, default=0.0)
    return ratios.index(best) if best > 0 else None


def _named(text: str, options: Sequence[str]) -> int | None:
    """Return the one option that the text names by its words, else by its letter alone."""
    hits = _named_by_words(text, options)
    if hits:
        return hits[0] if len(hits) == 1 else None
    letter = re.match(r"\s*(?:\(([A-Za-z])\)|([A-Za-z])\s*[.:)]|([A-Za-z])\s*$)", text)
    if letter is None:
        return None
    index = ord(next(group for group in letter.groups() if group).lower()) - ord("a")
    return index if index < len(options) else None


def _named_by_words(text: str, options: Sequence[str]) -> list[int]:
    words, named = _strict_words(text), [_strict_words(option) for option in options]
    hits = [i for i, option in enumerate(named) if _contains(words, option)]
    # "left lung" names the option "left lung", not also the option "lung".
    return [i for i in hits if not any(i != j and _contains(named[j], named[i]) for j in hits)]


def _contains(words: Sequence[str], part: Sequence[str]) -> bool:
    return bool(part) and any(
        words[i : i + len(part)] == part for i in range(len(words) - len(part) + 1)
    )
