"""The rules of the authors' VQA scoring and of the strict one, as tables of cases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.metrics.vqa import choice_correct, closed_correct, is_yes_no, normalize, open_recall

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The left lung.", "left lung"),  # article and final period
        ("x-ray", "x ray"),  # a mark between letters becomes a blank
        ("CT - scan", "ct scan"),  # a mark beside a blank is deleted
        (
            "well-known - fact",
            "wellknown fact",
        ),  # decided on the whole text: every such mark is deleted
        ("1,000 x-rays", "1000 xrays"),  # digit,digit anywhere deletes every mark
        ("3.5 cm.", "3.5 cm"),  # a period before a digit stays
        ("ten None Zero three", "10 0 0 3"),
        ("dont shouldntve couldn'tve 'ow'sat", "don't shouldntve couldn't've 'ow's'at"),
        ("Im", "im"),  # capitalised keys of the table can never match
        ("somebody'd", "somebodyd"),
        ("a", ""),  # the answer option "a" is an article
        ("T1: yes", "t1: yes"),  # the colon is not in the list
        ("." * 40 + "x", "." * 8 + "x"),  # only the first 32 periods go
        ("a, b", "b"),
    ],
)
def test_normalisation_cases(text: str, expected: str) -> None:
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "authors", "strict"),
    [
        ("left lung lung", "lung right", 2 / 3, 1 / 2),
        ("lung", "lung", 1, 1),
        ("The LUNG.", "lung", 1, 1),
        ("", "lung", 0, 0),
        ("lung", "", 0, 0),
        ("liver", "left lung", 0, 0),
        (
            "lung lung lung",
            "left lung",
            3 / 4,
            1 / 2,
        ),  # repeating a word inflates the authors' recall
        ("x-ray", "x ray", 1, 1),
        ("2", "two", 1, 1),
        ("left, right", "right left", 1, 1),
        ("a", "a", 0, 1),  # the authors' normaliser eats the answer
        ("lungs", "lung", 0, 1),  # the strict rule knows plurals
        ("lung", "lung lung", 1, 1 / 2),
        ("3.5 cm", "3.5cm", 0, 1),
    ],
)
def test_open_recall_cases(prediction: str, reference: str, authors: float, strict: float) -> None:
    assert open_recall(prediction, reference) == pytest.approx(authors)
    assert open_recall(prediction, reference, rule="strict") == pytest.approx(strict)


@pytest.mark.parametrize(
    ("prediction", "reference", "authors", "strict"),
    [
        ("Yes.", "yes", True, True),
        ("No", "Yes", False, False),
        ("No, it is not.", "no", True, True),
        ("normal", "no", True, False),  # "no" is a substring of "normal"
        ("I know the diagnosis", "No", True, False),
        ("yes, no", "no", True, False),  # both named
        ("eyes", "yes", True, False),
        ("", "no", False, False),
        ("left lung", "left lung", False, True),  # neither "yes" nor "no" anywhere: never a hit
        ("no, the left lung", "left lung", True, True),
        ("CT", "ct", False, True),
        ("CTA", "CT", False, False),
        ("The image shows a CT.", "CT", False, True),
        ("Normal CT", "ct", True, True),  # right by the accident of "no" in "normal"
    ],
)
def test_closed_cases(prediction: str, reference: str, authors: bool, strict: bool) -> None:
    assert closed_correct(prediction, reference) is authors
    assert closed_correct(prediction, reference, rule="strict") is strict


@pytest.mark.parametrize(
    ("prediction", "reference", "options", "authors", "strict"),
    [
        (
            "MRI",
            "MRI",
            ["CT", "MRI", "X-ray"],
            False,
            True,
        ),  # the reference is lower-cased, so "mri" shares no letter
        ("mri", "mri", ["ct", "mri", "x-ray"], True, True),
        ("The modality is mri.", "mri", ["ct", "mri"], True, True),
        ("B", "mri", ["ct", "mri"], False, True),  # "B" resembles no option, letter by letter
        ("(b) because", "mri", ["ct", "mri"], False, True),
        ("B. it is", "mri", ["ct", "mri"], False, True),
        ("ct or mri", "mri", ["ct", "mri"], True, False),  # naming two is no answer
        ("left lung", "left lung", ["lung", "left lung"], True, True),
        (
            "zzz",
            "qqq",
            ["ct", "mri"],
            True,
            False,
        ),  # both resemble nothing: the authors count a hit
        ("E", "ct", ["ct", "mri"], False, False),
        ("", "ct", ["ct", "mri"], False, False),
    ],
)
def test_choice_cases(
    prediction: str, reference: str, options: list[str], authors: bool, strict: bool
) -> None:
    assert choice_correct(prediction, reference, options) is authors
    assert choice_correct(prediction, reference, options, rule="strict") is strict


def test_yes_no_subset() -> None:
    assert [is_yes_no(text) for text in ("Yes", "no.", "left", "yes and no", "")] == [
        True,
        True,
        False,
        False,
        False,
    ]


@given(st.text(), st.text())
def test_recall_is_a_share_and_one_for_the_reference_itself(
    prediction: str, reference: str
) -> None:
    for rule in ("authors", "strict"):
        assert 0.0 <= open_recall(prediction, reference, rule=rule) <= 1.0
        assert open_recall(reference, reference, rule=rule) in (0.0, 1.0)
    if any(letter.isalnum() for letter in reference):
        assert open_recall(reference, reference, rule="strict") == 1.0
