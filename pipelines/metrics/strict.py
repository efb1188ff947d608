"""The strict rule: what an answer says last and plainly, in one spelling, and nothing besides."""

import re
from collections import Counter
from collections.abc import Sequence

from pipelines.metrics.imaging_terms import EXCLUSIVE
from pipelines.metrics.strict_words import NEGATORS, NOT, facts, sentences, words

# An answer that is marked as one: tags, a box, bold face, "the answer is X".
_MARKED = re.compile(
    r"<answer>\s*(?P<tag>.+?)\s*(?:</answer>|$)"
    r"|\\+boxed\s*\{\s*(?:\\text\s*\{)?(?P<box>[^{}]+)\}"
    r"|\*\*(?!\s)(?P<bold>[^*\n]+?)\*\*(?!\s*:)"
    r"|\b(?:answer|correct option|correct choice)\s*(?:is|are|would be|=|:)\s*:?\s*"
    r"(?P<said>.+?)(?=[.;!?](?:\s|$)|\n|$)",
    re.IGNORECASE | re.DOTALL,
)
_YES = frozenset(["yes", "yeah", "yep", "positive", "present", "true", "correct", "affirmative"])
_NO = frozenset(["no", "nope", "negative", "absent", "none", "false", "incorrect"])
_EXISTS = re.compile(
    r"\b(?:there (?:is|are|was|were)|shows?|demonstrates?|reveals?|has|have|present|seen|visible|"
    r"visuali[sz]ed|evident|identified|detected|noted|found|positive|evidence of|consistent with|"
    r"suggest(?:s|ive)|contains?)\b"
)
_UNSURE = re.compile(
    r"\b(?:not sure|unsure|unclear|uncertain|"
    r"can ?not (?:tell|determine|say|be (?:determined|sure)))\b"
)
_LETTER = r"[\[(]?\s*([A-Za-z])\s*[\])]?"
_LETTERED = re.compile(r"^\s*[\[(]?([A-Za-z])\s*(?:[.):\]]+)\s*(\S.*)$", re.DOTALL)


def answer_of(text: str) -> str:
    """Return the last answer that a text marks as its answer, or else the whole text."""
    found = re.sub(r"<think>.*?</think>", " ", text, flags=re.DOTALL | re.IGNORECASE)
    for _ in range(3):  # a box inside of tags, bold face inside of either
        marks = [mark for mark in _MARKED.finditer(found) if _is_answer(mark)]
        if not marks:
            break
        inner = next(part for part in marks[-1].groups() if part is not None)
        if inner == found:
            break
        found = inner
    return found.strip()


def _is_answer(mark: re.Match[str]) -> bool:
    bold = mark.group("bold")
    return bool(any(mark.groups())) and not (bold is not None and bold.rstrip().endswith(":"))


def open_counts(prediction: str, reference: str) -> tuple[int, int, int]:
    """Count the words that both say, those of the prediction and those of the reference.

    A denied word is another word than the same one affirmed.
    """
    true = Counter(facts(reference))
    if Counter(facts(prediction)) == true:
        return true.total(), true.total(), true.total()
    said = Counter(facts(answer_of(prediction)))
    if not any(word.startswith(NOT) for word in true):  # what is ruled out is nothing besides
        said = Counter({word: n for word, n in said.items() if not word.startswith(NOT)})
    return (said & true).total(), said.total(), true.total()


def polarity(text: str) -> bool | None:
    """Whether a text says yes or no; None where it says neither, or both.

    A marked answer decides. Without one, the words yes and no decide (and "negative", "none",
    "absent" alone), and without those what the sentences state.
    """
    said = answer_of(text)
    explicit = {one for sentence in sentences(said) for one in _explicit(sentence)}
    if explicit:
        return explicit.pop() if len(explicit) == 1 else None
    stated = {one for sentence in sentences(said) if (one := _stated(sentence)) is not None}
    return stated.pop() if len(stated) == 1 else None


def _explicit(sentence: Sequence[str]) -> set[bool]:
    found: set[bool] = set()
    for place, token in enumerate(sentence):
        before = sentence[place - 1] if place else ""
        after = sentence[place + 1] if place + 1 < len(sentence) else ""
        alone = (not before or before in _BOUNDARIES) and (not after or after in _BOUNDARIES)
        if token in ("yes", "no") and {before, after} & {"yes", "no"}:
            found.add(token == "yes")
        elif token in ("yes", "yeah", "yep"):
            found.add(before != "not")
        elif token == "no" and (alone or (not before and after in _SUBJECTS)):
            found.add(False)
        elif alone and token in _YES and not _denials(sentence):
            found.add(True)
        elif alone and token in _NO:
            found.add(False)
    return found


_BOUNDARIES = frozenset([",", ":", "/", "&", "or", "and", "is", "are"])
_SUBJECTS = frozenset(["it", "this", "that", "there", "they", "the", "i"])


def _stated(sentence: Sequence[str]) -> bool | None:
    if _UNSURE.search(" ".join(sentence)):
        return None
    if _denials(sentence):
        return False
    return True if _EXISTS.search(" ".join(sentence)) else None


def _denials(sentence: Sequence[str]) -> bool:
    """Whether a sentence denies anything, unless it is only contrast that is left out."""
    return any(
        token in NEGATORS and not (token == "without" and "contrast" in sentence[place + 1 :])
        for place, token in enumerate(sentence)
    )


def reference_polarity(reference: str) -> bool | None:
    """Return what a reference says that is yes or no, or begins with it ("No, it is clear")."""
    found = re.match(r"\W*(yes|no)\b\s*(?:[,.;:!-]|$)", reference.lower())
    return None if found is None else found.group(1) == "yes"


def closed_correct(prediction: str, reference: str) -> bool:
    """Whether a closed question is answered rightly: yes or no, or the reference's words."""
    wanted = reference_polarity(reference)
    if wanted is not None:
        return polarity(prediction) is wanted
    said = re.sub(r"\bnot normal\b", "abnormal", answer_of(prediction), flags=re.IGNORECASE)
    true = words(reference)
    if words(said) == true:
        return True
    *echo, last = re.split(r"[.;!?:\n]\s+", said.strip().rstrip("."))
    if words(last) == true and any(re.search(r"\bor\b", one, re.IGNORECASE) for one in echo):
        return True  # "T1 or T2: T2" repeats the question first
    chosen = said if "than" in true else _before_than(said)
    affirmed = facts(chosen)
    return (
        contains(affirmed, facts(reference))
        and not _rivals(affirmed, true)
        and not _alternatives(chosen, true)
    )


def _before_than(text: str) -> str:
    """Return what is chosen in a comparison: "the liver is bigger than the lung" is the liver."""
    return re.split(r"\b(?:than|compared (?:to|with)|versus|vs)\b", text, flags=re.IGNORECASE)[0]


def _rivals(said: Sequence[str], true: Sequence[str]) -> bool:
    """Whether the text also names what excludes the reference: right beside left, CT beside MRI."""
    return any(group & set(true) and (group - set(true)) & set(said) for group in EXCLUSIVE)


def _alternatives(text: str, true: Sequence[str]) -> bool:
    """Whether the reference stands in the text as one of two: "normal or abnormal"."""
    parts = re.split(r"\bor\b|(?<=[^\W\d])/(?=[^\W\d])", text, flags=re.IGNORECASE)
    named = [contains(words(one), true) for one in parts]
    return len(parts) > 1 and any(named) and not all(named) and "or" not in true


def contains(said: Sequence[str], part: Sequence[str]) -> bool:
    """Whether `part` occurs in `said` as consecutive words."""
    size = len(part)
    return bool(part) and any(
        list(said[i : i + size]) == list(part) for i in range(len(said) - size + 1)
    )


def choice(prediction: str, options: Sequence[str]) -> int | None:
    """Return the one option that a prediction picks, by words or by letter; None otherwise.

    Words and letter together must be one option.
    """
    labels, texts = labelled(options)
    said = answer_of(prediction)
    polarities = [reference_polarity(text) for text in texts]
    if texts and None not in polarities and len(set(polarities)) == len(texts):
        stated = polarity(prediction)
        if stated is not None:
            return polarities.index(stated)
    said = re.split(r"\b(?:because|since)\b", said, flags=re.IGNORECASE)[0].strip() or said
    lettered = _letters(said, labels)
    if len(lettered) > 1:
        return None
    by_words = _named(_without_letter(said, labels), texts)
    picked = set(by_words) | lettered
    return picked.pop() if len(picked) == 1 else None


def choice_of_reference(reference: str, options: Sequence[str]) -> int | None:
    """Return which option a reference is: its words, its letter, or both ("B. MRI")."""
    labels, texts = labelled(options)
    for written in (reference, _without_letter(reference, labels)):
        same = _same(written, texts)
        if same:
            lettered = _letters(reference, labels) if written != reference else set()
            return same[0] if lettered <= {same[0]} else None
    alone = re.fullmatch(rf"\s*{_LETTER}\s*[.:]?\s*", reference)
    return labels.get(alone.group(1).lower()) if alone else None


def labelled(options: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Return the letters of options, their own ("A. CT") or by place, and their texts."""
    matches = [_LETTERED.match(option) for option in options]
    letters = [match.group(1).lower() for match in matches if match]
    if options and len(letters) == len(options) and len(set(letters)) == len(options):
        return (
            {letter: place for place, letter in enumerate(letters)},
            [match.group(2) for match in matches if match],
        )
    return {chr(ord("a") + place): place for place in range(min(26, len(options)))}, list(options)


def _letters(text: str, labels: dict[str, int]) -> set[int]:
    """Return the options that a text names by letter."""
    several = re.fullmatch(r"\W*[A-Za-z](?:\s*(?:,|/|&|and|or)\s*[(\[]?[A-Za-z][)\]]?)+\W*", text)
    if several:
        found = re.findall(r"\b[A-Za-z]\b", text)
    else:
        leading = re.match(
            r"\W*?(?:[\[(]\s*([A-Za-z])\s*[\])]|([A-Za-z])\s*[.:)](?![a-z])"
            r"|([A-Z])\s*,|([A-Za-z])\W*$)",
            text,
        )
        found = [one for one in leading.groups() if one] if leading else []
        found += re.findall(r"\b(?:option|choice|answer)\s+[\[(]?([A-Za-z])\b", text, re.IGNORECASE)
        found += re.findall(r"\(([A-Z])\)", text)
        found += re.findall(r"\b([A-Z]) is (?:correct|right)\b", text)
        found += re.findall(r"\b(?:choose|pick|select|is|it's) [\[(]?([A-Z])[\])]?\W*$", text)
    return {labels[one.lower()] for one in found if one.lower() in labels}


def _without_letter(text: str, labels: dict[str, int]) -> str:
    match = _LETTERED.match(text)
    return match.group(2) if match and match.group(1).lower() in labels else text


def _named(text: str, options: Sequence[str]) -> list[int]:
    """Return the options that a text affirms in words; of "left lung" and "lung" the longer."""
    exact = _same(text, options)
    if exact:
        return exact
    said, named = facts(_before_than(text)), [facts(option) for option in options]
    hits = [i for i, option in enumerate(named) if contains(said, option)]
    return [
        i
        for i in hits
        if not any(
            i != j and contains(named[j], named[i]) and len(named[j]) > len(named[i]) for j in hits
        )
    ]


def _same(text: str, options: Sequence[str]) -> list[int]:
    """Return the options that are the text letter by letter, otherwise those of its words."""
    plain = text.strip().lower()
    literal = [i for i, option in enumerate(options) if option.strip().lower() == plain]
    return literal or [i for i, option in enumerate(options) if words(option) == words(text)]
