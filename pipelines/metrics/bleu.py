"""BLEU.

The mean over reports of sentence BLEU-4 (Papineni et al. 2002), smoothed by NLTK's method 4.

As in the authors' evaluation: uniform weights over 1- to 4-grams, `nltk.word_tokenize`, case kept.
It is not corpus BLEU, and without smoothing most short reports would score 0.
"""

from collections.abc import Mapping, Sequence

from pipelines.metrics.metric import Metric, Pair, Value, require
from pipelines.metrics.words import tokenizer_version, words


def load(models: Mapping[str, str]) -> Metric:
    """Return the metric; it needs no model."""
    require("nltk")
    what = {"bleu": "BLEU-4, mean of sentence BLEU, NLTK smoothing method 4"}
    return Metric("bleu", f"bleu-4 method4, {tokenizer_version()}", compute, what)


def compute(pairs: Sequence[Pair]) -> list[Value]:
    """Return sentence BLEU-4 of every pair."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smoothing = SmoothingFunction().method4
    return [
        {
            "bleu": float(
                sentence_bleu([words(reference)], words(prediction), smoothing_function=smoothing)
            )
        }
        for reference, prediction in pairs
    ]
