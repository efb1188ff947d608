"""Data in the forms that people have become the records that they say, or one clear line."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from pipelines.datasets.check import check
from pipelines.datasets.convert import convert
from shared.errors import UserError
from shared.records import Record, Turn, load_records, write_records

pytestmark = pytest.mark.unit
ASKED = (Turn("human", "<image>\nWhere?"), Turn("gpt", "left"))


def picture(place: int) -> bytes:
    made = Image.new("RGB", (8, 8))
    made.putpixel((place, 0), (255, 0, 0))
    stream = io.BytesIO()
    made.save(stream, format="PNG")
    return stream.getvalue()


def converted(folder: Path, name: str, content: str) -> list[Record]:
    (folder / name).write_text(content)
    done = convert(folder / name, folder / "out" / "train.json")
    assert done["image_root"] == str(folder)
    assert done["embedded_images"] == 0
    found = load_records(folder / "out" / "train.json")
    assert done["records"] == len(found)
    return found


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "<image>Where?"},
                      {"role": "assistant", "content": "left"}], "images": ["a.png"]},
        {"messages": [{"role": "user", "content": [{"type": "image"},
                                                   {"type": "text", "text": "Where?"}]},
                      {"role": "assistant", "content": [{"type": "text", "text": "left"}]}],
         "images": ["a.png"]},
        {"conversations": [{"from": "human", "value": "<image>Where?"},
                           {"from": "gpt", "value": "left"}], "images": ["a.png"], "system": ""},
        {"image": "a.png", "conversations": [{"from": "human", "value": "Where?\n<image>"},
                                             {"from": "gpt", "value": "left"}]},
        {"question": "Where?", "answer": "left", "image": "a.png"},
    ],
    ids=["llama-factory", "parts", "sharegpt", "llava", "question"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_one_conversation_in_every_form(row: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    text = json.dumps([row]) if suffix == ".json" else json.dumps(row) + "\n\n"
    [found] = converted(tmp_path, f"mine{suffix}", text)
    assert (found.images, found.turns) == (("a.png",), ASKED)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "system", "content": "Be brief."},
                      {"role": "user", "content": "<image>Where?"},
                      {"role": "assistant", "content": "left"}], "images": ["a.png"]},
        {"conversations": [{"from": "system", "value": "Be brief.\n"},
                           {"from": "human", "value": "Where?"},
                           {"from": "gpt", "value": "left"}], "image": "a.png"},
        {"conversations": [{"from": "human", "value": "<image>Where?"},
                           {"from": "gpt", "value": "left"}], "images": ["a.png"],
         "system": "Be brief."},
    ],
    ids=["messages", "llava", "field"],
)  # fmt: skip
def test_a_system_turn_is_kept(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    [found] = converted(tmp_path, "mine.json", json.dumps([row]))
    assert (found.system, found.turns, found.extra) == ("Be brief.", ASKED, {})
    assert (found.question, found.answer) == ("Where?", "left")
    again = dataclasses.replace(found, id="2", system="")
    for suffix in ("json", "jsonl", "parquet"):
        write_records(tmp_path / f"two.{suffix}", [found, again])
        assert load_records(tmp_path / f"two.{suffix}", tmp_path) == [found, again]
    checked = check(tmp_path / "two.json", tmp_path)
    # another system message is another question
    assert (checked["system_turns"], checked["repeated"]) == (1, 0)


def test_a_table_of_questions(tmp_path: Path) -> None:
    head = "ID,Image,Question,Answer,answer_type,System\n"
    rows = 'q1,a.png,Where?,left,OPEN,nerves\nq2,,"Is ""it"", or not?",yes,CLOSED,\n'
    first, second = converted(tmp_path, "mine.csv", head + rows)
    assert (first.id, first.images, first.turns, first.answer_type) == (
        "q1", ("a.png",), ASKED, "OPEN",
    )  # fmt: skip
    assert (first.extra, second.extra) == ({"system": "nerves"}, {})
    assert (second.images, second.question, second.answer) == ((), 'Is "it", or not?', "yes")


def test_parquet_with_images_inside(tmp_path: Path) -> None:
    images = [picture(0), picture(1), picture(0)]
    rows = [
        {"image": {"bytes": one, "path": "x.png"}, "question": f"Where {i}?", "answer": "left"}
        for i, one in enumerate(images)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "mine.parquet")
    done = convert(tmp_path / "mine.parquet", tmp_path / "out" / "train.json")
    assert (done["image_root"], done["embedded_images"]) == (str(tmp_path / "out"), 2)
    found = load_records(tmp_path / "out" / "train.json", tmp_path / "out")
    assert [one.question for one in found] == ["Where 0?", "Where 1?", "Where 2?"]
    for one, content in zip(found, images, strict=True):
        assert (tmp_path / "out" / one.images[0]).read_bytes() == content
        assert hashlib.sha256(content).hexdigest() in one.images[0]
    assert check(tmp_path / "out" / "train.json")["problems"] == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"messages": [{"role": "system", "content": "Be brief."}]}], "a system turn alone"),
        (
            [
                {
                    "conversations": [
                        {"from": "human", "value": "x"},
                        {"from": "system", "value": "y"},
                    ]
                }
            ],
            "turn 1 is from 'system'",
        ),
        (
            [{"messages": [{"role": "system", "content": "x"}], "system": "y"}],
            "turn 1 is from 'system'",
        ),
        (
            [
                {
                    "messages": [
                        {"role": "system", "content": "<image>"},
                        {"role": "user", "content": "x"},
                    ]
                }
            ],
            "the system turn holds <image>",
        ),
        ([{"messages": [{"role": "tool", "content": "x"}]}], "a turn of 'tool'"),
        ([{"messages": [{"role": "user", "content": [{"type": "video"}]}]}], "neither text nor"),
        ([{"messages": [{"role": "user", "content": [{"type": "text"}]}]}], "neither text nor"),
        (
            [{"question": "x", "answer": "y", "image": {"bytes": None}}],
            "an image without bytes and path",
        ),
        ([{"question": "cut \ud83d", "answer": "y"}], "half of a character"),
        ([{"messages": "hello"}], "no list"),
        ([{"text": "hello"}], "neither `conversations` nor `question`"),
        (["hello"], "no record"),
        ([], "holds no records"),
        ({}, "expected a JSON list"),
    ],
)
def test_what_cannot_be_told_is_refused(rows: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=said):
        convert(tmp_path / "mine.json", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_files_that_are_there_or_torn_are_left(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('[{"question": ')
    (tmp_path / "there.json").write_text("kept")
    (tmp_path / "torn.csv").write_text("image,question,answer\na.png,Where?\n")
    for source, out, said in (
        ("mine.json", "there.json", "there.json exists"),
        ("mine.json", "new.txt", "does not end in"),
        ("mine.json", "new.json", "cannot be read"),
        ("mine.txt", "new.json", "end in .json, .jsonl, .parquet"),
        ("none.json", "new.json", "no data at"),
        ("torn.csv", "new.json", "other cells than the head"),
    ):
        with pytest.raises(UserError, match=said):
            convert(tmp_path / source, tmp_path / out)
    assert (tmp_path / "there.json").read_text() == "kept"
