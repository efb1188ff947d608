"""Choices in every form that public sets write them."""

import pytest

from shared.choices import options_of

pytestmark = pytest.mark.unit
LETTERED = ("A. Chest", "B. Abdomen")
PLAIN = ("Chest", "Abdomen")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["Chest", "Abdomen"], PLAIN),
        ([1, 2.5], ("1", "2.5")),
        ({"A": "Chest", "B": "Abdomen", "C": None}, LETTERED),
        ("A. Chest, B. Abdomen", LETTERED),
        ("A. Chest B. Abdomen", LETTERED),
        ("(A) Chest (B) Abdomen", LETTERED),
        ("a) Chest b) Abdomen", LETTERED),
        ("A: Chest; B: Abdomen", LETTERED),
        ("A.Chest\nB.Abdomen\n", LETTERED),
        ("['Chest', 'Abdomen']", PLAIN),
        ('["Chest", "Abdomen"]', PLAIN),
        ("[Chest, Abdomen]", PLAIN),
        ("Chest, Abdomen", PLAIN),
        ("Chest; Abdomen", PLAIN),
        ("Chest | Abdomen", PLAIN),
        ("left, upper lobe\nright, lower lobe", ("left, upper lobe", "right, lower lobe")),
        ("Chest or Abdomen", PLAIN),
        ("Chest or Abdomen [upper]", ("Chest", "Abdomen [upper]")),
        ("[left] Chest or Abdomen", ("[left] Chest", "Abdomen")),
        ("[yes, no]", ("yes", "no")),
        ("yes/no", ("yes", "no")),
        ("A. Vitamin A. deficiency, B. none", ("A. Vitamin A. deficiency", "B. none")),
        ("one choice", ("one choice",)),
        ("", ()),
        (" -- ", ()),
        ("[]", ()),
        (None, ()),
    ],
)
def test_every_form(written, read):
    assert options_of(written, read[-1] if len(read) > 1 else "") == read


@pytest.mark.parametrize("text", ["chest, B. subtilis", "Chest, Abdomen", "in a word or two"])
def test_text_of_which_the_reference_is_no_part_is_one_choice(text):
    assert options_of(text, "pelvis") == (text,)
    assert options_of(text) == (text,)
