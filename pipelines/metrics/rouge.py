"""ROUGE-L (Lin 2004).

F measure of the longest common subsequence, by `rouge_score` with its stemmer.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from pipelines.metrics.metric import Metric, Pair, Value, require


def load(models: Mapping[str, str]) -> Metric:
    """Return the metric; it needs no model."""
    require("rouge_score")
    what = {"rouge_l": "ROUGE-L F measure, Porter stemmer"}
    return Metric("rouge", f"rougeL stemmer, rouge_score {version('rouge_score')}", compute, what)


def compute(pairs: Sequence[Pair]) -> list[Value]:
    """Return the ROUGE-L F measure of every pair."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [
        {"rouge_l": float(scorer.score(reference, prediction)["rougeL"].fmeasure)}
        for reference, prediction in pairs
    ]
