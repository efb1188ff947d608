"""21 conversations under both templates: the ids and labels that the authors' code gives.

`golden_conversations.jsonl` was made by the released `preprocess_multimodal` and `preprocess_v1` of
both models under transformers 4.37.2, with its slow tokenizers, on the tokenizers of these tests:
an image is one id, -200, and `learned` are the places whose label is not ignored.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from shared.records import Turn
from student_train.models.pieces import piece_tokenizer
from student_train.models.prompts import IGNORED, encode_conversation
from student_train.models.templates import TEMPLATES
from tests.fixtures.student_checkpoints import mistral_tokenizer, qwen_tokenizer

pytestmark = pytest.mark.unit

TALKS = [
    json.loads(line)
    for line in (Path(__file__).parent / "golden_conversations.jsonl")
    .read_text(encoding="utf-8")
    .split("\n")
    if line
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from transformers import LlamaTokenizer

    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "mistral").mkdir()
    mistral_tokenizer(folder / "mistral")
    return {
        "vicuna_v1": piece_tokenizer(LlamaTokenizer, folder / "mistral"),
        "huatuo_v1": qwen_tokenizer(folder / "qwen"),
    }


@pytest.mark.parametrize("name", ["vicuna_v1", "huatuo_v1"])
@pytest.mark.parametrize("number", range(21))
def test_as_the_authors_code(number: int, name: str, tokenizers: dict[str, Any]) -> None:
    talk = TALKS[number]
    turns = [
        Turn("gpt" if place % 2 else "human", text) for place, text in enumerate(talk["turns"])
    ]
    encoded = encode_conversation(turns, TEMPLATES[name], tokenizers[name], 1, -200)
    wanted = talk[name]
    assert encoded.input_ids == wanted["ids"]
    learned = [place for place, label in enumerate(encoded.labels) if label != IGNORED]
    if name == "huatuo_v1" and len(turns) > 2:
        # The released code loses a place at each end token: from the second answer on it labels a
        # piece of the opening and none of the ends. Here every answer with its end is learned.
        end = tokenizers[name].convert_tokens_to_ids("<|endoftext|>")
        assert learned != wanted["learned"]
        assert sum(encoded.input_ids[place] == end for place in learned) == len(turns) // 2
    else:
        assert learned == wanted["learned"]


def test_the_cases_are_many() -> None:
    assert len(TALKS) == 21
    assert len({tuple(talk["vicuna_v1"]["ids"]) for talk in TALKS}) == 21
