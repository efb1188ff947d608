"""BLEU-4 and ROUGE-L as the COCO caption evaluation has them, which report papers print.

They are other numbers than `bleu` and `rouge_l`: BLEU is of the corpus, matches and lengths summed
over all reports before the quotient, without smoothing; ROUGE-L is the F measure with beta 1.2,
which leans to recall. Words are what white space parts, case kept, as in RadEval; R2Gen's texts are
lower-cased and cleaned before.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import cast

from pipelines.metrics.metric import Metric, Pair, Total, Value
from pipelines.metrics.totals import bleu

_LONGEST = 4
_BETA = 1.2


def load(models: Mapping[str, str]) -> Metric:
    """Return the metric; it needs no model."""
    return Metric(
        "coco",
        "coco, words by white space, case kept",
        compute,
        {"rouge_l_coco": "ROUGE-L as in COCO's captions, beta 1.2, words by white space"},
        {
            "bleu_corpus": Total(
                "corpus BLEU-4 as in COCO's captions and RadEval, no smoothing, words by white "
                "space",
                _counts,
                bleu,
            )
        },
    )


def compute(pairs: Sequence[Pair]) -> list[Value]:
    """Return ROUGE-L of every pair, and what corpus BLEU counts in it."""
    return [_value(reference.split(), prediction.split()) for reference, prediction in pairs]


def _value(true: list[str], said: list[str]) -> Value:
    found: dict[str, float | list[int]] = {"rouge_l_coco": _rouge(true, said)}
    for length in range(1, _LONGEST + 1):
        matches = _grams(true, length) & _grams(said, length)
        guesses = max(0, len(said) - length + 1)
        found[f"n-grams {length}"] = [matches.total(), guesses, len(said), len(true)]
    return found


def _counts(value: Value) -> list[list[float]]:
    return [
        [float(one) for one in cast("list[int]", value[f"n-grams {length}"])]
        for length in range(1, _LONGEST + 1)
    ]


def _grams(words: Sequence[str], length: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + length]) for i in range(len(words) - length + 1))


def _rouge(true: Sequence[str], said: Sequence[str]) -> float:
    common = _common_subsequence(true, said)
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(true)
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest sequence of words that both have in this order."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for place, other in enumerate(b, start=1):
            before, row[place] = (
                row[place],
                before + 1 if word == other else max(row[place], row[place - 1]),
            )
    return row[-1]
