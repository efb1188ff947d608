"""ROUGE-L (Lin 2004).

F measure of the longest common subsequence, by `rouge_score` with its stemmer. Its tokenizer drops
every letter that is not Latin; here a Chinese, Japanese or Korean character is a word of its own,
and a text without Latin letters keeps its words.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from pipelines.metrics.metric import Metric, Pair, Value, require

_CHARACTER = re.compile("([\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff])")


def load(models: Mapping[str, str]) -> Metric:
    """Return the metric; it needs no model."""
    require("rouge_score")
    what = {"rouge_l": "ROUGE-L F measure, Porter stemmer"}
    return Metric(
        "rouge",
        f"rougeL stemmer, every script, rouge_score {version('rouge_score')}",
        compute,
        what,
    )


def compute(pairs: Sequence[Pair]) -> list[Value]:
    """Return the ROUGE-L F measure of every pair."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    return [
        {"rouge_l": float(scorer.score(reference, prediction)["rougeL"].fmeasure)}
        for reference, prediction in pairs
    ]


class _Words:
    """`rouge_score`'s own tokenizer for Latin text, and words of other scripts."""

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._latin = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        words: list[str] = []
        for piece in _CHARACTER.split(text):
            words += [piece] if _CHARACTER.fullmatch(piece) else self._latin.tokenize(piece)
        return words or re.findall(r"\w+", text.lower())
