"""METEOR (Banerjee and Lavie 2005) as NLTK computes it.

Exact, stem and WordNet matches, alpha 0.9, beta 3, gamma 0.5.

The authors use this one. NLTK looks synonyms up by stems, so that "large" (larg) has none. METEOR
1.5 (Java, with a paraphrase table, as in pycocoevalcap) gives other numbers.
"""

from collections.abc import Mapping, Sequence

from pipelines.metrics.metric import Metric, Pair, Unavailable, Value, require
from pipelines.metrics.words import tokenizer_version, words


def load(models: Mapping[str, str]) -> Metric:
    """Return the metric.

    Raises
    ------
    Unavailable
        NLTK or its WordNet is not installed.
    """
    require("nltk")
    import nltk

    try:
        nltk.data.find("corpora/wordnet")
    except LookupError:
        try:
            nltk.data.find("corpora/wordnet.zip")
        except LookupError:
            raise Unavailable(
                "NLTK's WordNet is not installed; python -m nltk.downloader wordnet, "
                "or set NLTK_DATA to a folder with corpora/wordnet"
            ) from None
    what = {"meteor": "METEOR of NLTK (exact, stem and WordNet matches)"}
    return Metric(
        "meteor",
        f"meteor 0.9 3 0.5, wordnet {_wordnet_version()}, {tokenizer_version()}",
        compute,
        what,
    )


def compute(pairs: Sequence[Pair]) -> list[Value]:
    """Return METEOR of every pair."""
    from nltk.translate.meteor_score import meteor_score

    return [
        {"meteor": float(meteor_score([words(reference)], words(prediction)))}
        for reference, prediction in pairs
    ]


def _wordnet_version() -> str:
    from nltk.corpus import wordnet

    return str(wordnet.get_version())
