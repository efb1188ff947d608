"""The strict rule on answers with a verdict, made by hand, and what it must hold for any text.

`strict_cases.json`: kind, question, prediction, reference, options of a choice, and the verdict.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.metrics import imaging_terms, strict, vqa
from pipelines.metrics.strict_words import facts, words

pytestmark = pytest.mark.unit
CASES: list[dict[str, Any]] = json.loads(Path(__file__).with_name("strict_cases.json").read_text())


def verdict(case: dict[str, Any]) -> bool:
    prediction, reference = case["prediction"], case["reference"]
    if case["kind"] == "closed":
        return vqa.closed_correct(prediction, reference, rule="strict")
    if case["kind"] == "open":
        return vqa.open_f1(prediction, reference, rule="strict") == 1
    return vqa.choice_correct(prediction, reference, case["options"], rule="strict")


@pytest.mark.parametrize("case", CASES, ids=[f"{c['kind']}-{n}" for n, c in enumerate(CASES)])
def test_verdicts(case: dict[str, Any]) -> None:
    assert verdict(case) is case["right"], case


def test_each_kind_has_cases_of_both_verdicts() -> None:
    assert len(CASES) >= 58
    for kind in ("closed", "open", "choice"):
        assert {case["right"] for case in CASES if case["kind"] == kind} == {True, False}


@pytest.mark.parametrize(
    ("prediction", "reference", "f1", "recall"),
    [
        ("liver heart lung", "liver heart", 4 / 5, 1),
        ("liver", "liver heart", 2 / 3, 1 / 2),
        ("no liver but heart", "liver heart", 2 / 3, 1 / 2),
        ("right lung", "left lung", 1 / 2, 1 / 2),
        ("", "lung", 0, 0),
        ("lung", "", 0, 0),
    ],
)
def test_strict_f1_and_recall(prediction: str, reference: str, f1: float, recall: float) -> None:
    assert vqa.open_f1(prediction, reference, rule="strict") == pytest.approx(f1)
    assert vqa.open_recall(prediction, reference, rule="strict") == pytest.approx(recall)
    exact = vqa.open_exact(prediction, reference, rule="strict")
    assert exact == float(f1 == 1)


@pytest.mark.parametrize(
    ("prediction", "reference", "f1", "exact"),
    [  # by hand from LLaVA-Med's `calculate_f1score` and `calculate_exactmatch`
        ("left lung lung", "lung right", 2 / 3, 1 / 3),  # tp 2, fp 1, fn 1
        ("lung", "lung", 1, 1),
        ("lung lung", "lung", 1, 1 / 2),
        ("liver", "lung", 0, 0),
        ("", "lung", 0, 0),
        ("lung", "", 0, 0),
        ("not the lung", "lung", 2 / 3, 1 / 2),  # tp 1, fp 1, fn 0; the article goes
    ],
)
def test_authors_f1_and_exact(prediction: str, reference: str, f1: float, exact: float) -> None:
    assert vqa.open_f1(prediction, reference) == pytest.approx(f1)
    assert vqa.open_exact(prediction, reference) == pytest.approx(exact)


def test_a_duplicated_option_is_no_choice_between_two() -> None:
    assert strict.choice("MRI", ["MRI", "mri", "CT"]) is None
    assert strict.choice_of_reference("X", ["MRI", "CT"]) is None


def test_the_table_is_its_own_normal_form() -> None:
    """A spelling leads to its word, and no word is a spelling of another."""
    for name, variants in (imaging_terms.SYNONYMS | imaging_terms.UNITS).items():
        assert words(name) == words(" ".join(words(name)))
        for variant in variants:
            assert words(variant) == words(name), (variant, name)
    for group in imaging_terms.EXCLUSIVE:
        assert all(words(word) == [word] for word in group), group


@given(st.text(), st.sampled_from([*(case["prediction"] for case in CASES)]))
def test_scores_of_any_text(text: str, other: str) -> None:
    for prediction, reference in ((text, other), (other, text), (text, text)):
        f1 = vqa.open_f1(prediction, reference, rule="strict")
        recall = vqa.open_recall(prediction, reference, rule="strict")
        assert 0 <= f1 <= 1
        assert 0 <= recall <= 1
        assert vqa.open_exact(prediction, reference, rule="strict") == float(f1 == 1)
        vqa.closed_correct(prediction, reference, rule="strict")
        vqa.choice_correct(prediction, reference, (text, other), rule="strict")
    if any(letter.isalnum() for letter in text):
        assert vqa.open_f1(text, text, rule="strict") == 1
        assert facts(text)
