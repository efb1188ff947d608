"""What a sentence denies, and what it is asked for."""

import pytest

from pipelines.metrics.imaging_terms import IRREGULAR_PLURALS
from pipelines.metrics.strict import polarity
from pipelines.metrics.strict_words import clauses, words
from pipelines.metrics.vqa import closed_correct

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "turn",
    ["but", "however", "although", "though", "except", "instead", "rather", "only", "yes"],
)
def test_a_denial_ends_where_the_sentence_turns(turn: str) -> None:
    denied = {word: no for said, no in clauses(f"no effusion {turn} a nodule") for word in said}
    assert denied["effusion"] is True
    assert denied["nodule"] is False


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("There is a nodule on the CT without contrast", True),
        ("The image without contrast shows a nodule", True),
        ("There is no nodule on the CT with contrast", False),
        ("The CT with contrast is seen without a nodule", False),
    ],
)
def test_contrast_that_is_left_out_denies_nothing(text: str, said: bool) -> None:
    assert polarity(text) is said


@pytest.mark.parametrize(
    "word", ["feces", "rabies", "scabies", "less", "pancreas", "pus", "lens", "pelvis", "diagnosis"]
)
def test_what_ends_with_s_and_is_no_plural_stays(word: str) -> None:
    assert words(word) == [word]


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("pneumothoraces", "pneumothorax"),
        ("hila", "hilum"),
        ("sulci", "sulcus"),
        ("sinuses", "sinus"),
        ("atria", "atrium"),
        ("vertebrae", "vertebra"),
        ("stenoses", "stenosis"),
    ],
)
def test_plurals_of_latin_and_greek(plural: str, singular: str) -> None:
    assert words(plural) == words(singular)


# Latin and Greek nominatives: plural endings, and the singular ones that they come from.
DECLENSIONS = {
    "ices": {"ex", "ix"}, "aces": {"ax"}, "uses": {"us"}, "es": {"is"}, "i": {"us"},
    "a": {"um", "on"},
}  # fmt: skip
ENGLISH = {"feet": "foot", "teeth": "tooth", "men": "man", "women": "woman", "calves": "calf",
           "children": "child"}  # fmt: skip


@pytest.mark.parametrize("plural", sorted(IRREGULAR_PLURALS))
def test_every_listed_plural_is_one_of_its_singular(plural: str) -> None:
    singular = IRREGULAR_PLURALS[plural]
    ending = next((one for one in DECLENSIONS if plural.endswith(one)), "")
    forms = {plural.removesuffix(ending) + one for one in DECLENSIONS.get(ending, ())}
    assert singular == ENGLISH.get(plural) or singular in forms
    assert words(plural) == words(singular) == [singular]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Unlikely", False),
        ("There is unlikely to be a fracture.", False),
        ("A fracture is unlikely.", False),
        ("Yes, although it is improbable that it grows", True),
    ],
)
def test_what_is_unlikely_is_denied(text: str, said: bool) -> None:
    assert closed_correct(text, "Yes", "strict") is said
    assert closed_correct(text, "No", "strict") is not said


@pytest.mark.parametrize(
    ("text", "said"), [("Yes yes", True), ("No no", False), ("Yes no", None), ("No yes", None)]
)
def test_yes_and_no_side_by_side_count_each(text: str, said: bool | None) -> None:
    assert polarity(text) is said
