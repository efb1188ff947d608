"""COCO's BLEU-4 and ROUGE-L against NLTK's corpus BLEU and the definitions."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import corpus_bleu

from pipelines.metrics import coco
from pipelines.metrics.metric import Pair
from pipelines.metrics.reports import report_values, score_reports, summarised

pytestmark = pytest.mark.unit

PAIRS = [
    Pair(
        "The lungs are clear without focal consolidation .", "The lungs are clear . No effusion ."
    ),
    Pair("The heart size is normal .", "The heart size is normal ."),
    Pair("There is a small left pleural effusion .", "Small left pleural effusion is seen there"),
    Pair("No acute findings", ""),
]
TEXT = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12).map(" ".join)


def coco_bleu(pairs: list[Pair]) -> float:
    """The corpus formula as `pycocoevalcap` and RadEval write it, with their tiny constants."""
    tiny, small = 1e-15, 1e-9
    correct, guess, said, true = np.zeros(4), np.zeros(4), 0, 0
    for reference, prediction in pairs:
        words, truth = prediction.split(), reference.split()
        said, true = said + len(words), true + len(truth)
        for n in range(1, 5):
            grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
            there = [tuple(truth[i : i + n]) for i in range(len(truth) - n + 1)]
            guess[n - 1] += max(0, len(words) - n + 1)
            correct[n - 1] += sum(min(grams.count(g), there.count(g)) for g in set(grams))
    product = 1.0
    for k in range(4):
        product *= (correct[k] + tiny) / (guess[k] + small)
    ratio = (said + tiny) / (true + small)
    return float(product**0.25 * (np.exp(1 - 1 / ratio) if ratio < 1 else 1.0))


def coco_rouge(pair: Pair) -> float:
    true, said = tuple(pair.reference.split()), tuple(pair.prediction.split())

    @cache
    def common(i: int, j: int) -> int:
        if i == len(true) or j == len(said):
            return 0
        if true[i] == said[j]:
            return 1 + common(i + 1, j + 1)
        return max(common(i + 1, j), common(i, j + 1))

    if not common(0, 0):
        return 0.0
    precision, recall, beta = common(0, 0) / len(said), common(0, 0) / len(true), 1.2
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def test_corpus_bleu_is_nltks_and_cocos() -> None:
    long = PAIRS[:3]  # a text of under four words counts one 4-gram in NLTK, and none in COCO
    expected = corpus_bleu([[a.split()] for a, _ in long], [b.split() for _, b in long])
    alone = score_reports(long, names=["coco"])["scores"]["bleu_corpus"]["value"]
    assert alone == pytest.approx(expected)
    found = score_reports(PAIRS, names=["coco"])["scores"]
    assert found["bleu_corpus"]["value"] == pytest.approx(coco_bleu(PAIRS), rel=1e-6)
    assert found["rouge_l_coco"]["value"] == pytest.approx(np.mean([coco_rouge(p) for p in PAIRS]))
    low, high = found["bleu_corpus"]["interval"]
    assert low < found["bleu_corpus"]["value"] < high
    sentence = score_reports(long, names=["bleu"])["scores"]["bleu"]["value"]
    assert abs(sentence - alone) > 0.02  # another number, under another name


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6))
def test_any_texts(texts: list[tuple[str, str]]) -> None:
    pairs = [Pair(*one) for one in texts]
    values = report_values(pairs, ["coco"])
    found = summarised(values, None)["scores"]
    assert found["bleu_corpus"]["value"] == pytest.approx(coco_bleu(pairs))
    assert values.columns["rouge_l_coco"] == pytest.approx([coco_rouge(pair) for pair in pairs])


def test_values_are_those_of_pycocoevalcap() -> None:
    """Computed once with pycocoevalcap 1.2 on PAIRS: `Bleu(4)` and `Rouge()`."""
    values = report_values(PAIRS, ["coco"])
    found = summarised(values, None)["scores"]
    assert found["bleu_corpus"]["value"] == pytest.approx(0.412001206537967)
    expected = [0.625, 1.0, 0.3952483801295896, 0.0]
    assert values.columns["rouge_l_coco"] == pytest.approx(expected)


def test_rouge_leans_to_recall() -> None:
    short, long = Pair("a b c d", "a b"), Pair("a b", "a b c d")
    [one], [other] = coco.compute([short]), coco.compute([long])
    assert float(str(one["rouge_l_coco"])) < float(str(other["rouge_l_coco"]))
