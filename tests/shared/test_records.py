"""Data set files: every form in, the same records out, and faults that name file and record."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import UserError
from shared.records import (
    Record,
    Turn,
    front_images,
    image_root_of,
    load_records,
    strip_marks,
    write_records,
)

pytestmark = pytest.mark.unit

LLAVA = {
    "id": "CXR2384_IM-0942_train0",
    "image": "CXR2384_IM-0942/0.png",
    "conversations": [
        {
            "from": "human",
            "value": "<image>\nAnalyze the chest X-ray and generate a concise medical report.",
        },
        {"from": "gpt", "value": "The heart size is normal ."},
    ],
}
SLAKE = {
    "img_id": 102,
    "img_name": "xmlab102/source.jpg",
    "question": "What modality is used to take this image?",
    "answer": "CT",
    "q_lang": "en",
    "answer_type": "OPEN",
    "qid": 11934,
}


def put(folder: Path, rows: list[Any], name: str = "data.json") -> Path:
    path = folder / name
    text = (
        json.dumps(rows) if path.suffix == ".json" else "\n".join(json.dumps(row) for row in rows)
    )
    path.write_text(text)
    return path


def test_llava_conversation(tmp_path: Path) -> None:
    (record,) = load_records(put(tmp_path, [LLAVA]))
    assert record.id == LLAVA["id"]
    assert record.images == ("CXR2384_IM-0942/0.png",)
    assert (
        record.turns[0].text
        == "<image>\nAnalyze the chest X-ray and generate a concise medical report."
    )
    assert record.question == "Analyze the chest X-ray and generate a concise medical report."
    assert record.answer == "The heart size is normal ."
    assert record.answer_type is None
    assert record.extra == {}


def test_question_form_of_slake(tmp_path: Path) -> None:
    (record,) = load_records(put(tmp_path, [SLAKE], "slake.jsonl"))
    assert (record.id, record.images, record.answer_type) == (
        "11934",
        ("xmlab102/source.jpg",),
        "OPEN",
    )
    assert record.turns == (
        Turn("human", "<image>\nWhat modality is used to take this image?"),
        Turn("gpt", "CT"),
    )
    assert record.extra == {"img_id": 102, "q_lang": "en"}


def test_question_form_asks_as_the_authors_do(tmp_path: Path) -> None:
    rows = [
        {
            "id": 1,
            "image": "a.png",
            "question": "Effusion?\n<image>",
            "question_type": "binary",
            "answer": "Yes.",
        },
        {
            "id": 2,
            "image": "a.png",
            "question": "Which?",
            "choices": "A: lung, B: liver",
            "answer": "A: lung",
        },
        {"id": 3, "image": "a.png", "question": "Which?", "choices": "-", "answer": 3},
        {
            "id": 4,
            "image": "a.png",
            "question": "Which?",
            "choices": ["left lung", "liver"],
            "answer_type": "CLOSED ",
        },
    ]
    binary, chosen, blank, listed = load_records(put(tmp_path, rows))
    assert binary.turns[0].text == "<image>\nEffusion? Please answer Yes or No."
    assert chosen.question == "Which? Please choose from the following options: A: lung, B: liver"
    assert (blank.question, blank.answer) == ("Which?", "3")
    assert listed.options == ("left lung", "liver")
    assert (listed.answer, listed.answer_type) == ("", "CLOSED")


def test_an_id_beside_a_qid_stays_extra(tmp_path: Path) -> None:
    row = {"qid": 7, "id": "of-the-image", "question": "Which?", "answer": "lung"}
    (record,) = load_records(put(tmp_path, [row]))
    assert record.id == "7"
    assert record.extra["id"] == "of-the-image"


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("CLOSED ", "CLOSED"),
        ("close", "CLOSED"),
        ("closed-ended", "CLOSED"),
        ("yes/no", "CLOSED"),
        ("Open", "OPEN"),
        ("open-ended", "OPEN"),
        ("OPEN_ENDED", "OPEN"),
    ],
)
def test_answer_types_in_other_spellings(tmp_path: Path, said: str, read: str) -> None:
    (record,) = load_records(put(tmp_path, [{**SLAKE, "answer_type": said}]))
    assert (record.answer_type, "answer_type" in record.extra) == (read, False)


def test_foreign_answer_types_stay_extra(tmp_path: Path) -> None:
    (record,) = load_records(put(tmp_path, [{**SLAKE, "answer_type": "other"}]))
    assert record.answer_type is None
    assert record.extra["answer_type"] == "other"


def test_several_images_text_only_and_marks(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "Compare <image> with <image> please"},
        {"from": "gpt", "value": "same"},
    ]
    rows = [
        {"id": "two", "image": ["a.png", "b.nii.gz#axial=3"], "conversations": turns},
        {
            "id": "none",
            "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}],
        },
        {"image": "a.png", "conversations": [{"from": "human", "value": "unmarked"}]},
    ]
    two, none, unmarked = load_records(put(tmp_path, rows))
    assert two.turns[0].text == "<image>\n<image>\nCompare with please"
    assert none.images == ()
    assert none.turns[0].text == "hello"
    assert (unmarked.id, unmarked.turns[0].text) == ("2", "<image>\nunmarked")


def test_front_images() -> None:
    assert front_images("What is <image> this?") == "<image>\nWhat is this?"
    assert front_images("plain ") == "plain "
    assert front_images("plain", 2) == "<image>\n<image>\nplain"
    assert strip_marks("a\n<image>\nb") == "a b"


texts = st.text(st.characters(codec="utf-8"), max_size=30).filter(
    lambda text: "<image>" not in text
)


@settings(deadline=None)
@given(
    pairs=st.lists(st.tuples(texts, texts, st.integers(0, 2)), min_size=1, max_size=3),
    answer_type=st.sampled_from([None, "OPEN", "CLOSED"]),
    options=st.lists(texts.filter(bool), max_size=2),
    suffix=st.sampled_from([".json", ".jsonl", ".parquet"]),
)
def test_written_records_come_back(
    pairs: list[tuple[str, str, int]], answer_type: Any, options: list[str], suffix: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    turns: list[Turn] = []
    for question, answer, images in pairs:
        turns += [Turn("human", front_images(question, images)), Turn("gpt", answer)]
    count = sum(images for _, _, images in pairs)
    names = tuple(f"{number}.png" for number in range(count))
    record = Record(
        "x", names, tuple(turns), answer_type, tuple(options), {"source": "here", "number": 3}
    )
    plain = Record("y", (), (Turn("human", "q"), Turn("gpt", "a")))
    path = tmp_path_factory.mktemp("round") / f"data{suffix}"
    write_records(path, [record, plain])
    assert load_records(path) == [record, plain]


def test_records_are_written_in_known_forms_only(tmp_path):
    with pytest.raises(UserError, match=r"set\.csv: a data set file ends in \.json, \.jsonl or "):
        write_records(tmp_path / "set.csv", [Record("x", (), (Turn("human", "q"),))])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (["no"], "record 1: a record is a mapping, found a list"),
        ({"id": "x"}, r"record 1 \(id x\): neither `conversations` nor `question`"),
        ({"id": "x", "conversations": []}, r"\(id x\): `conversations` must be a list of turns"),
        ({"id": "x", "conversations": [{"from": "human"}]}, "turn 0 must be"),
        (
            {"id": "x", "conversations": [{"from": "gpt", "value": "a"}]},
            "turn 0 is from 'gpt'; human and gpt alternate",
        ),
        (
            {"id": "x", "conversations": [{"from": "human", "value": "<image>"}]},
            "1 <image> marks for 0 images",
        ),
        (
            {
                "id": "x",
                "image": ["a"] * 2,
                "conversations": [{"from": "human", "value": "<image>"}],
            },
            "1 <image> marks for 2",
        ),
        (
            {"id": "x", "image": 3, "question": "q"},
            "`image` must be a path or a list of paths, found a int",
        ),
        (
            {"id": "x", "image": {"bytes": "", "path": "a"}, "question": "q"},
            "save embedded images as files first",
        ),
        ({"id": "x", "question": 3}, "`question` must be text"),
        ({"id": "x", "question": "q", "answer": True}, "`answer` must be text or a number"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "q"},
                    {"from": "gpt", "value": "<image>"},
                ],
                "image": "a",
            },
            "an answer contains <image>",
        ),
    ],
)
def test_faulty_records_are_named(row: Any, line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line) as caught:
        load_records(put(tmp_path, [LLAVA, row]))
    assert "data.json" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.json", b"{", "cannot be read"),
        ("a.json", b"{}", "expected a JSON list"),
        ("a.json", b"[]", "holds no records"),
        ("a.json", b"\xff\xfe[]", "cannot be read"),
        ("a.jsonl", b'{"question": "q"}\nnot json\n', "line 2 is not JSON"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.csv", b"a,b", r"ends in \.json, \.jsonl or \.parquet"),
    ],
)
def test_faulty_files_are_named(name: str, content: bytes, line: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=line) as caught:
        load_records(tmp_path / name)
    assert name in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data set file at"):
        load_records(tmp_path / "absent.json")


def test_missing_images_are_counted(tmp_path: Path) -> None:
    path = put(tmp_path, [LLAVA, SLAKE])
    (tmp_path / "xmlab102").mkdir()
    (tmp_path / "xmlab102" / "source.jpg").touch()
    with pytest.raises(
        UserError, match=r"1 records show images that are not there, first .*0\.png \(id CXR2384"
    ):
        load_records(path, tmp_path)
    assert image_root_of(path, None) == tmp_path
    assert image_root_of(path, "elsewhere") == Path("elsewhere")


def test_all_bad_records_are_counted_and_three_are_shown(tmp_path: Path) -> None:
    bad: list[dict[str, object]] = [{"id": f"b{number}"} for number in range(5)]
    with pytest.raises(UserError, match="5 records are no records, first") as caught:
        load_records(put(tmp_path, [bad[0], LLAVA, *bad[1:]]))
    line = str(caught.value)
    assert [f"(id b{number})" in line for number in range(5)] == [True, True, True, False, False]
    assert "\n" not in line
    assert "record 2 (id b1)" in line  # the places of the file, bad ones counted


@pytest.mark.parametrize("name", ["bom.json", "bom.jsonl"])
def test_a_byte_order_mark_is_read_over(tmp_path: Path, name: str) -> None:
    path = put(tmp_path, [LLAVA], name)
    plain = load_records(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_records(path) == plain


def test_a_field_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text('[{"id": 1, "question": "q", "answer": "left", "answer": "right"}]')
    with pytest.raises(UserError, match="one record has the field 'answer' twice"):
        load_records(file)


def test_a_missing_cell_is_no_answer(tmp_path: Path) -> None:
    """Pandas writes NaN for it, which would be trained as a word."""
    with pytest.raises(UserError, match="`answer` must be text or a number"):
        load_records(put(tmp_path, [{**SLAKE, "answer": float("nan")}]))


def test_json_lines_under_the_name_of_json(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text(f"{json.dumps(SLAKE)}\n{json.dumps(SLAKE)}\n")
    with pytest.raises(UserError, match=r"one record a line ends in \.jsonl"):
        load_records(file)


def test_lines_that_are_no_json_are_counted_with_the_other_bad_records(tmp_path: Path) -> None:
    lines = ['{"question": "q", "answer": "a"}', "{", '{"answer": "a"}', "[1,", "", "nonsense"]
    file = tmp_path / "torn.jsonl"
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(
        UserError, match="4 records are no records, first line 2 is not JSON"
    ) as one:
        load_records(file)
    line = str(one.value)
    assert "line 3 (id 2): neither" in line
    assert "line 4 is not JSON" in line
    assert "line 6" not in line


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "a\\ud83d"},
        {"note": {"deep": ["x", "cut \\ud83d"]}},
        {"conversations": [{"from": "human", "value": "\\ude00"}, {"from": "gpt", "value": "b"}]},
    ],
)
def test_half_of_a_character_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    """No file holds it and no tokenizer takes it; a whole emoji and other scripts are fine."""
    turns = [{"from": "human", "value": "Wo? \U0001f600 \u00e4"}, {"from": "gpt", "value": "b"}]
    whole = {"id": "\u4e2d", "conversations": turns}
    text = json.dumps([whole, whole | changes]).replace("\\\\ud", "\\ud")
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError, match=r"record 1.* holds half of a character") as error:
        load_records(tmp_path / "data.json")
    str(error.value).encode()
    (tmp_path / "data.json").write_text(json.dumps([whole]))
    assert load_records(tmp_path / "data.json")[0].id == "\u4e2d"
