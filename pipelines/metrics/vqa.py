"""VQA scores.

Open recall, closed accuracy and multiple choice, under the authors' rule and a strict one.

`authors` is the scoring of LLaVA-Med (`llava/eval/run_eval.py` and `eval_metrics/`), which
MEDALIGN's authors use, its substring faults included. `strict` is the same idea on whole words:

| score  | `authors`                                 | `strict`                                   |
|--------|-------------------------------------------|--------------------------------------------|
| open   | shared words count as often as            | counts are clipped to the reference's;     |
|        | *predicted*                               | one spelling; what is denied is no match   |
| closed | needs the letters "yes" or "no" anywhere, | what is said last and plainly: yes or no,  |
|        | and the reference as a substring          | or the reference and nothing against it    |
| choice | the most similar option, letter by letter | the one option that the prediction names,  |
|        | (difflib)                                 | by words or by letter                      |

The strict rule is in `strict`, its words in `strict_words`, its terms in `imaging_terms`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal

from pipelines.metrics import strict

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


def open_recall(prediction: str, reference: str, rule: Rule = "authors") -> float:
    """Share of the reference's words found in the prediction, in [0, 1].

    0 where either text has no word.

    `authors`: with tp the prediction's count of every shared word and fn the reference's count of
    every missing one, tp / (tp + fn), so "left lung lung" against "lung right" is 2/3. `strict`:
    shared counts are clipped, 1/2.
    """
    if rule == "authors":
        found, _, missed, empty = _authors_counts(prediction, reference)
        return found / (found + missed) if found and not empty else 0.0
    shared, _, true = strict.open_counts(prediction, reference)
    return shared / true if true else 0.0


def open_f1(prediction: str, reference: str, rule: Rule = "authors") -> float:
    """Harmonic mean of precision and recall over words, in [0, 1].

    0 where either text has no word. `authors`: LLaVA-Med's `calculate_f1score`, with the counts of
    its recall. `strict`: 1 where the prediction says all of the reference and nothing besides.
    """
    if rule == "authors":
        found, extra, missed, empty = _authors_counts(prediction, reference)
        if not found or empty:
            return 0.0
        precision, recall = found / (found + extra), found / (found + missed)
        return 2 * precision * recall / (precision + recall)
    shared, said, true = strict.open_counts(prediction, reference)
    return 2 * shared / (said + true) if said and true else 0.0


def open_exact(prediction: str, reference: str, rule: Rule = "authors") -> float:
    """Return exact match, in [0, 1] by the authors' rule and 0 or 1 by the strict one.

    `authors`: LLaVA-Med's `calculate_exactmatch`, distinct words of the reference that are found,
    per word of the prediction. `strict`: 1 where `open_f1` is 1.
    """
    if rule == "authors":
        said, true = _authors_words(prediction), _authors_words(reference)
        return sum(word in said for word in true) / said.total() if said else 0.0
    shared, said_count, true_count = strict.open_counts(prediction, reference)
    return float(0 < shared == said_count == true_count)


def _authors_words(text: str) -> Counter[str]:
    return Counter(normalize(normalize(text.lower())).split())


def _authors_counts(prediction: str, reference: str) -> tuple[int, int, int, bool]:
    """Count shared, additional and missing words, and say whether a text has none."""
    said, true = _authors_words(prediction), _authors_words(reference)
    found = sum(count for word, count in said.items() if word in true)
    extra = sum(count for word, count in said.items() if word not in true)
    missed = sum(count for word, count in true.items() if word not in said)
    return found, extra, missed, not said or not true


def closed_correct(prediction: str, reference: str, rule: Rule = "authors") -> bool:
    """Whether a closed question is answered rightly.

    `authors`: the normalised prediction must contain the letters "yes" or "no" ("normal" does) and
    the normalised reference as a substring. `strict`: for a reference that is or begins with yes or
    no, the prediction's last plain answer must be it; any other reference must be affirmed word for
    word, without naming what excludes it.
    """
    if rule == "authors":
        said, true = normalize(prediction.lower()), normalize(reference.lower())
        return ("yes" in said or "no" in said) and true in said
    return strict.closed_correct(prediction, reference)


def in_closed_table(reference: str) -> bool:
    """Whether a closed question counts in the paper's tables: its reference has "yes" or "no".

    As letters anywhere, so that VQA-RAD's three "abnormal" count beside its 251 yes and no: 254 fit
    the 22 printed values, as do SLAKE's 355 and PathVQA's 3,391.
    """
    text = reference.lower()
    return "yes" in text or "no" in text


def is_yes_no(reference: str) -> bool:
    """Whether the reference is yes or no."""
    found = re.findall(r"\w+(?:[.']\w+)*", reference.lower().replace("_", " "))
    return [word for word in found if word not in _ARTICLES] in (["yes"], ["no"])


def choice_correct(
    prediction: str, reference: str, options: Sequence[str], rule: Rule = "authors"
) -> bool:
    """Whether the prediction picks the reference among `options` (OmniMedVQA).

    `authors`: prediction and lower-cased reference each pick the first option with the highest
    difflib ratio above 0, and two that pick nothing agree. `strict`: the prediction must name
    exactly one option, by its words, by its letter ("B", "(b)", "the answer is B") or by both, and
    that one must be the reference, which may be an option's words, its letter, or "B. MRI".
    """
    if rule == "authors":
        return _most_similar(prediction, options) == _most_similar(reference.lower(), options)
    picked, wanted = (
        strict.choice(prediction, options),
        strict.choice_of_reference(reference, options),
    )
    return picked is not None and picked == wanted


def _most_similar(text: str, options: Sequence[str]) -> int | None:
    ratios = [SequenceMatcher(None, option, text).ratio() for option in options]
    best = max(ratios, default=0.0)
    return ratios.index(best) if best > 0 else None
