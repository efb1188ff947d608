"""Words of a report, as `nltk.word_tokenize` gives them, with or without NLTK's sentence model."""

import re
from functools import cache

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@cache
def has_punkt() -> bool:
    """Whether NLTK's English sentence model (`punkt_tab`) is installed."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


def tokenizer_version() -> str:
    """Name what splits the text: a metric over words is another one under another tokenizer."""
    from importlib.metadata import version

    return f"nltk {version('nltk')}, sentences by {'punkt_tab' if has_punkt() else 'rule'}"


def words(text: str) -> list[str]:
    """Return the tokens of `nltk.word_tokenize`; case is kept.

    Without `punkt_tab` a sentence ends at `.`, `!` or `?` before white space: the model differs
    from that only where it knows an abbreviation ("approx. 2 cm" keeps its period).
    """
    from nltk.tokenize import NLTKWordTokenizer, word_tokenize

    if has_punkt():
        return list(word_tokenize(text))
    tokenizer = NLTKWordTokenizer()
    return [
        token
        for sentence in _SENTENCE_END.split(text.strip())
        for token in tokenizer.tokenize(sentence)
    ]
