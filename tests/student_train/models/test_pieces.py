"""A tokenizer made of a sentencepiece file has that file's ids."""

import random
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, LlamaTokenizer

from shared.errors import UserError
from student_train.models.pieces import check_pieces, merges, piece_tokenizer
from tests.fixtures.student_checkpoints import mistral_tokenizer

pytestmark = pytest.mark.unit
WORDS = [
    "the",
    "heart",
    "is",
    "normal",
    "FINDINGS:",
    "IMPRESSION:",
    "3",
    "cm",
    "---",
    "=====",
    ".....",
    "effusion,",
    "aaaa",
    "haha",
    "____",
    "\t",
    "\n",
    "\r\n",
    "\xa0",
    "\u2009",
    "😀",
    "café",
    "肺",
    "▁",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistral")
    mistral_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def pieces(folder: Path) -> Any:
    return SentencePieceProcessor(str(folder / "tokenizer.model"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return piece_tokenizer(LlamaTokenizer, folder)


def texts(count: int) -> list[str]:
    """Words with one to twenty blanks between them, blanks at the ends too."""
    draw = random.Random(0)
    blanks = [0, 1, 1, 1, 2, 2, 3, 5, 17, 20]
    return [
        " " * draw.choice(blanks)
        + "".join(
            draw.choice(WORDS) + " " * draw.choice(blanks) for _ in range(draw.randint(1, 12))
        )
        for _ in range(count)
    ]


def test_runs_of_blanks_have_the_ids_of_the_file(tokenizer: Any, pieces: Any) -> None:
    found = tokenizer("FINDINGS:  The", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(found)[-2:] == ["\u2581", "\u2581The"]
    for text in texts(1500):
        assert tokenizer(text, add_special_tokens=False).input_ids == pieces.encode(text)


def test_a_text_behind_an_end_begins_anew(tokenizer: Any, pieces: Any) -> None:
    found = tokenizer("yes</s> USER: ok").input_ids
    assert found == [1, *pieces.encode("yes"), 2, *pieces.encode(" USER: ok")]


def test_a_saved_tokenizer_keeps_the_ids(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    for text in texts(50):
        assert saved(text).input_ids == tokenizer(text).input_ids


def test_other_ids_are_refused(folder: Path, pieces: Any) -> None:
    with pytest.raises(UserError, match=r"becomes .* but tokenizer.model says"):
        check_pieces(LlamaTokenizer.from_pretrained(folder), pieces, folder)


def test_a_damaged_file_is_one_line(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"tokenizer\.model|tokenizer"):
        piece_tokenizer(LlamaTokenizer, tmp_path)


def test_pieces_of_one_score_grow_from_the_left() -> None:
    scores = {"a": -9.0, "b": -9.0, "aa": -1.0, "aaa": -1.0, "ab": -0.5}
    assert merges(scores) == [("a", "b"), ("aa", "a"), ("a", "a"), ("a", "aa")]
