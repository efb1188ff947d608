"""The field of images in all its spellings; none is passed over in silence."""

import json
from pathlib import Path

import pytest

from shared.errors import UserError
from shared.records import load_records

pytestmark = pytest.mark.unit
TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Ribs."}]


def read(folder: Path, **fields: object) -> tuple[str, ...]:
    file = folder / "data.json"
    file.write_text(json.dumps([{"id": "1", "conversations": TALK, **fields}]))
    [record] = load_records(file)
    return record.images


@pytest.mark.parametrize(
    "key",
    ["image", "images", "Image", "image_path", "img_path", "image_file", "img_name", "IMG", "img"],
)
@pytest.mark.parametrize("value", ["a.png", ["a.png"]])
def test_every_known_spelling_is_read(tmp_path: Path, key: str, value: object) -> None:
    assert read(tmp_path, **{key: value}) == ("a.png",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("picture", "a.png"),
        ("scan", "series/1.dcm"),
        ("photo_files", ["a.JPG", "b.jpg"]),
        ("volume", "brain.nii.gz#axial=9"),
        ("pixels", {"bytes": "", "path": None}),
        ("data", {"picture": "a.png"}),
        ("video", "a.mp4"),
    ],
)
def test_an_image_in_another_field_is_refused(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"`{key}` holds one; rename it to `image`"):
        read(tmp_path, **{key: value})


def test_a_record_of_text_alone_stays_one(tmp_path: Path) -> None:
    extra = {"image_organ": "CHEST", "source": "https://x.org/a.png", "image": None, "images": []}
    assert read(tmp_path, **extra) == ()


def test_the_known_field_is_enough(tmp_path: Path) -> None:
    assert read(tmp_path, image="a.png", thumbnail="b.png") == ("a.png",)


@pytest.mark.parametrize("key", ["choices", "options"])
@pytest.mark.parametrize(
    "value",
    ["A. Chest, B. Abdomen", "A: Chest; B: Abdomen", "(A) Chest\n(B) Abdomen",
     {"A": "Chest", "B": "Abdomen"}, ["A. Chest", "B. Abdomen"]],
)  # fmt: skip
def test_options_of_a_question_in_every_form(tmp_path: Path, key: str, value: object) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"qid": 1, "question": "Where?", "answer": "B", key: value}]))
    [record] = load_records(file)
    assert record.options == ("A. Chest", "B. Abdomen")
    assert "Please choose from the following options" in record.question


def test_one_string_without_letters_is_one_option(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    row = {"qid": 1, "question": "Where?", "answer": "x", "choices": "chest, B. subtilis"}
    file.write_text(json.dumps([row]))
    assert load_records(file)[0].options == ("chest, B. subtilis",)
