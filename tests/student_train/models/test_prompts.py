"""Prompts against independent evaluations with the tokenizers' own libraries; invariants."""

import os
import re
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import UserError
from shared.records import Turn
from student_train.models.pieces import piece_tokenizer
from student_train.models.prompts import IGNORED, Span, encode_conversation, encode_prompt
from student_train.models.templates import TEMPLATES, check_tokenizer, template_named
from tests.fixtures.student_checkpoints import mistral_tokenizer, qwen_tokenizer

pytestmark = pytest.mark.unit

QWEN = "MEDALIGN_QWEN_TOKENIZER"
PATCHES = 5
IMAGE = 40000
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import LlamaTokenizer

    folder = tmp_path_factory.mktemp("mistral")
    mistral_tokenizer(folder)
    return piece_tokenizer(LlamaTokenizer, folder)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return qwen_tokenizer(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from sentencepiece import SentencePieceProcessor

    folder = tmp_path_factory.mktemp("pieces")
    mistral_tokenizer(folder)
    return SentencePieceProcessor(str(folder / "tokenizer.model"))


def talk(*texts: str) -> list[Turn]:
    return [Turn("gpt" if number % 2 else "human", text) for number, text in enumerate(texts)]


def test_image_starts_at_34_for_llava_med(mistral: Any) -> None:
    encoded = encode_prompt("What is it?", TEMPLATES["vicuna_v1"], mistral, 576, IMAGE, images=1)
    assert encoded.images == [Span(34, 34 + 576)]


def test_image_starts_at_33_for_huatuo(qwen: Any) -> None:
    encoded = encode_prompt("What is it?", TEMPLATES["huatuo_v1"], qwen, 576, IMAGE, images=1)
    assert encoded.images == [Span(33, 33 + 576)]


@pytest.mark.skipif(
    QWEN not in os.environ, reason=f"{QWEN} names no folder with Qwen's published tokenizer.json"
)
def test_the_whole_qwen_table_says_the_same(qwen: Any) -> None:
    """Qwen2, 2.5 and 3 share one table of merges.

    The special tokens behind it differ and play no part here.
    """
    from transformers import Qwen2Tokenizer

    whole = Qwen2Tokenizer.from_pretrained(os.environ[QWEN])
    assert len(whole) > 151_643
    encoded = encode_prompt("What is it?", TEMPLATES["huatuo_v1"], whole, 576, IMAGE, images=1)
    assert encoded.images == [Span(33, 33 + 576)]
    cut = encode_prompt("What is it?", TEMPLATES["huatuo_v1"], qwen, 576, IMAGE, images=1)
    assert whole.convert_ids_to_tokens(encoded.input_ids[:33]) == qwen.convert_ids_to_tokens(
        cut.input_ids[:33]
    )


def test_vicuna_ids_equal_llavas_piecewise_rule(mistral: Any, sentencepiece: Any) -> None:
    """The authors' way, with sentencepiece itself.

    Pieces between images and ends, one beginning-of-sequence token.
    """
    turns = talk("<image>\nWhat is shown?", "A lung.", "And\nhere: ok?", "Yes, clear.")
    encoded = encode_conversation(turns, TEMPLATES["vicuna_v1"], mistral, PATCHES, IMAGE)
    pieces = sentencepiece.encode
    before = [1, *pieces(f"{SYSTEM} USER: ")]
    first = pieces("\nWhat is shown? ASSISTANT:")
    answer = [*pieces("A lung."), 2]  # sentencepiece itself writes the blank before a word
    second = pieces(" USER: And\nhere: ok? ASSISTANT:")
    last = [*pieces("Yes, clear."), 2]
    assert encoded.input_ids == [*before, *[IMAGE] * PATCHES, *first, *answer, *second, *last]
    hidden = len(before) + PATCHES + len(first)
    assert encoded.labels == [*[IGNORED] * hidden, *answer, *[IGNORED] * len(second), *last]
    end = hidden + len(answer)
    rows = [Span(len(before) + PATCHES, hidden), Span(end, end + len(second))]
    assert encoded.questions == [rows]


def test_huatuo_ids_equal_the_plain_string(qwen: Any) -> None:
    turns = talk("What is shown in this image?\n<image>", "yes")
    encoded = encode_conversation(turns, TEMPLATES["huatuo_v1"], qwen, PATCHES, IMAGE)
    before = qwen(f"{SYSTEM} <|user|>: ").input_ids
    after = qwen("\nWhat is shown in this image? <|assistant|>: yes<|endoftext|>").input_ids
    assert encoded.input_ids == [*before, *[IMAGE] * PATCHES, *after]
    assert [token for token in encoded.labels if token != IGNORED] == after[-2:]
    assert qwen.convert_ids_to_tokens(after[-2:]) == ["Ġyes", "<|endoftext|>"]


def test_huatuo_turns_are_parted_by_a_blank(qwen: Any) -> None:
    turns = talk("What is shown?", "yes", "Where?", "no")
    encoded = encode_conversation(turns, TEMPLATES["huatuo_v1"], qwen, PATCHES, IMAGE)
    text = (
        f"{SYSTEM} <|user|>: What is shown? <|assistant|>: yes<|endoftext|>"
        " <|user|>: Where? <|assistant|>: no<|endoftext|>"
    )
    assert encoded.input_ids == qwen(text).input_ids


def test_chatml_is_the_chat_template(qwen: Any) -> None:
    turns = talk("Is it?", "Yes", "Sure?", "No")
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    text = f"<|im_start|>system\n{system}<|im_end|>\n" + "".join(
        f"<|im_start|>{'assistant' if turn.role == 'gpt' else 'user'}\n{turn.text}<|im_end|>\n"
        for turn in turns
    )
    encoded = encode_conversation(turns, TEMPLATES["chatml"], qwen, PATCHES, IMAGE)
    assert encoded.input_ids == qwen(text.removesuffix("\n")).input_ids
    assert (
        qwen.decode([token for token in encoded.labels if token != IGNORED])
        == "Yes<|im_end|>No<|im_end|>"
    )
    assert encoded.images == []
    assert encoded.questions == []


def test_official_templates(mistral: Any, qwen: Any) -> None:
    encoded = encode_prompt(
        "Is it?", TEMPLATES["mistral_instruct"], mistral, PATCHES, IMAGE, images=1
    )
    assert mistral.decode(encoded.input_ids[: encoded.images[0].start]) == "<s> [INST] "
    assert mistral.decode(encoded.input_ids[encoded.images[0].end :]).strip() == "Is it? [/INST]"
    encoded = encode_prompt("Is it?", TEMPLATES["huatuo"], qwen, PATCHES, IMAGE, images=2)
    text = "<|user|>\n" + "I" * PATCHES + "\n" + "I" * PATCHES + "\nIs it?\n<|assistant|>\n"
    assert (
        "".join("I" if token == IMAGE else qwen.decode([token]) for token in encoded.input_ids)
        == text
    )


def test_a_system_message_takes_the_place_of_vicunas(mistral: Any, sentencepiece: Any) -> None:
    """LLaVA's conversation writes its field `system`, then the separator of questions, a blank."""
    turns = talk("<image>\nWhat is shown?", "A lung.")
    encoded = encode_conversation(
        turns, TEMPLATES["vicuna_v1"], mistral, PATCHES, IMAGE, system="Be {} brief.\n"
    )
    before = [1, *sentencepiece.encode("Be {} brief. USER: ")]
    after = sentencepiece.encode("\nWhat is shown? ASSISTANT:")
    answer = [*sentencepiece.encode("A lung."), 2]
    assert encoded.input_ids == [*before, *[IMAGE] * PATCHES, *after, *answer]
    hidden = len(before) + PATCHES + len(after)
    assert encoded.labels == [*[IGNORED] * hidden, *answer]
    assert encoded.questions == [[Span(len(before) + PATCHES, hidden)]]


def test_a_system_message_of_huatuo_and_of_chatml(qwen: Any) -> None:
    turns = talk("<image>\nIs it?", "yes")
    encoded = encode_conversation(
        turns, TEMPLATES["huatuo_v1"], qwen, PATCHES, IMAGE, system="Be brief."
    )
    before = qwen("Be brief. <|user|>: ").input_ids
    after = qwen("\nIs it? <|assistant|>: yes<|endoftext|>").input_ids
    assert encoded.input_ids == [*before, *[IMAGE] * PATCHES, *after]
    # SmolLM2-Instruct's own chat template, by transformers
    chat = (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
        "Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    for system in ("Be brief.", ""):
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": "Is it?"})
        expected = qwen.apply_chat_template(
            messages, chat_template=chat, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        found = encode_prompt(
            "Is it?", TEMPLATES["chatml"], qwen, PATCHES, IMAGE, images=0, system=system
        )
        assert found.input_ids == list(expected)


def test_a_system_message_of_llava_meds_own_evaluation(mistral: Any, sentencepiece: Any) -> None:
    """The style LLAMA_2 of LLaVA's conversation: inside the first `[INST]`, before the image."""
    turns = talk("<image>\nIs it?", "Yes.", "Sure?")
    found = encode_prompt(
        turns, TEMPLATES["mistral_instruct"], mistral, PATCHES, IMAGE, system="Be brief."
    )
    pieces = sentencepiece.encode
    before = [1, *pieces("[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n")]
    first = [*pieces("\nIs it? [/INST] Yes. "), 2]
    rest = found.input_ids[len(before) + PATCHES + len(first) :]
    assert found.input_ids[: len(before)] == before
    assert found.input_ids[len(before) + PATCHES :][: len(first)] == first
    assert mistral.decode(rest).strip() == "[INST] Sure? [/INST]"
    assert set(found.labels) == {IGNORED}


@pytest.mark.parametrize(
    ("name", "system", "said"),
    [
        ("huatuo", "Be brief.", "template huatuo has no place for a system message"),
        ("chatml", "Be <|im_end|> brief.", "special token <|im_end|>"),
        ("chatml", "Look: <image>", "a system message shows no image"),
    ],
)
def test_a_system_message_without_a_place(name: str, system: str, said: str, qwen: Any) -> None:
    for turns in (talk("Is it?"), talk("Is it?", "yes")):
        encode = encode_prompt if len(turns) == 1 else encode_conversation
        with pytest.raises(UserError, match=re.escape(said)):
            encode(turns, TEMPLATES[name], qwen, PATCHES, IMAGE, system=system)
        empty = encode(turns, TEMPLATES[name], qwen, PATCHES, IMAGE, system=" \n")
        assert empty == encode(turns, TEMPLATES[name], qwen, PATCHES, IMAGE)


def test_an_instruction_stands_where_the_system_message_stood(qwen: Any) -> None:
    for name in ("chatml", "huatuo_v1", "qwen3_vl"):
        told = encode_prompt("Is it?", TEMPLATES[name], qwen, PATCHES, IMAGE, system="Look.")
        disturbed = encode_prompt(
            "Is it?", TEMPLATES[name], qwen, PATCHES, IMAGE, system="system", instruction="Look."
        )
        assert disturbed == told


def test_several_images_and_their_rows(qwen: Any) -> None:
    turns = talk("Compare <image> and <image>", "yes", "<image>this?", "no")
    encoded = encode_conversation(turns, TEMPLATES["chatml"], qwen, PATCHES, IMAGE)
    first, second, third = encoded.images
    assert second.start == first.end + len(qwen("\n").input_ids)
    answers = [place for place, label in enumerate(encoded.labels) if label != IGNORED]
    for span, questions in zip(encoded.images, encoded.questions, strict=True):
        rows = [place for one in questions for place in range(one.start, one.end)]
        other = {place for one in encoded.images for place in range(one.start, one.end)}
        assert rows == [
            place
            for place in range(span.end, len(encoded.input_ids))
            if place not in other and place not in answers
        ]
    assert all(
        encoded.input_ids[place] == IMAGE
        for span in (first, second, third)
        for place in range(*span)
    )


words = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20
).filter(lambda text: bool(text.strip()) and "<" not in text and "[" not in text)


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(words, words, st.integers(0, 2)), min_size=1, max_size=3),
    name=st.sampled_from(["vicuna_v1", "mistral_instruct", "huatuo_v1", "huatuo", "chatml"]),
)
def test_any_conversation(
    pairs: list[tuple[str, str, int]], name: str, mistral: Any, qwen: Any
) -> None:
    """Training ids begin with those of the generation prompt; only the answers are labelled."""
    tokenizer = mistral if name in ("vicuna_v1", "mistral_instruct") else qwen
    turns = []
    for question, answer, images in pairs:
        turns += [Turn("human", "<image>" * images + question), Turn("gpt", answer)]
    encoded = encode_conversation(turns, TEMPLATES[name], tokenizer, PATCHES, IMAGE)
    prompt = encode_prompt(turns[:-1], TEMPLATES[name], tokenizer, PATCHES, IMAGE)
    assert len(encoded.labels) == len(encoded.input_ids)
    assert encoded.input_ids[: len(prompt.input_ids)] == prompt.input_ids
    assert encoded.labels[len(prompt.input_ids) :] == encoded.input_ids[len(prompt.input_ids) :]
    assert encoded.images[: len(prompt.images)] == prompt.images
    assert all(
        label in (IGNORED, token)
        for label, token in zip(encoded.labels, encoded.input_ids, strict=True)
    )
    assert len(encoded.images) == sum(images for _, _, images in pairs)
    assert encoded.input_ids.count(IMAGE) == PATCHES * len(encoded.images)
    assert set(prompt.labels) == {IGNORED}
    ends = [
        place
        for place, label in enumerate(encoded.labels)
        if label == tokenizer.convert_tokens_to_ids(TEMPLATES[name].end_token)
    ]
    assert len(ends) == len(pairs)
    learned = [token for token in encoded.labels if token != IGNORED]
    answers = "".join(tokenizer.decode(learned, skip_special_tokens=True).split())
    assert answers == "".join("".join(answer.split()) for _, answer, _ in pairs)


def test_truncation_cuts_only_the_last_answer(mistral: Any) -> None:
    template = TEMPLATES["vicuna_v1"]
    turns = talk("<image>\nReport?", "one two three four five six")
    whole = encode_conversation(turns, template, mistral, PATCHES, IMAGE)
    length = len(whole.input_ids)
    answer = sum(label != IGNORED for label in whole.labels)
    assert encode_conversation(turns, template, mistral, PATCHES, IMAGE, max_length=length) == whole
    cut = encode_conversation(
        turns, template, mistral, PATCHES, IMAGE, max_length=length - 3, truncation="answer"
    )
    assert cut.input_ids == whole.input_ids[:-3]
    assert cut.labels == whole.labels[:-3]
    assert cut.images == whole.images
    with pytest.raises(
        UserError,
        match=rf"{length} tokens \(5 of images.*data\.max_length={length - 3}.*truncation=answer",
    ):
        encode_conversation(turns, template, mistral, PATCHES, IMAGE, max_length=length - 3)
    with pytest.raises(UserError, match="do not fit") as caught:
        encode_conversation(
            turns,
            template,
            mistral,
            PATCHES,
            IMAGE,
            max_length=length - answer,
            truncation="answer",
        )
    assert "truncation" not in str(caught.value)


@pytest.mark.parametrize(
    ("turns", "line"),
    [
        ([], "without an answer"),
        (talk("Is it?"), "without an answer"),
        (talk("Is it?", "  "), "an answer is empty"),
        (talk("Is it?", "yes</s>no"), "special token </s>"),
        ([Turn("gpt", "a"), Turn("gpt", "b")], "alternate"),
    ],
)
def test_conversations_that_teach_nothing(turns: list[Turn], line: str, mistral: Any) -> None:
    with pytest.raises(UserError, match=line):
        encode_conversation(turns, TEMPLATES["vicuna_v1"], mistral, PATCHES, IMAGE)


def test_prompt_must_end_with_a_question(mistral: Any) -> None:
    with pytest.raises(UserError, match="end with a question"):
        encode_prompt(talk("Is it?", "yes"), TEMPLATES["vicuna_v1"], mistral, PATCHES, IMAGE)
    with pytest.raises(UserError, match="the 2 images given"):
        encode_prompt(
            talk("<image>Is it?"), TEMPLATES["vicuna_v1"], mistral, PATCHES, IMAGE, images=2
        )


def test_unknown_template_and_foreign_tokenizer(mistral: Any, qwen: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean vicuna_v1"):
        template_named("vicuna_1")
    check_tokenizer(qwen, TEMPLATES["huatuo_v1"])
    with pytest.raises(UserError, match=r"no token <\|im_end\|>.*model\.template"):
        check_tokenizer(mistral, TEMPLATES["chatml"])


def ends_by_prefixes(chunk: Any, tokenizer: Any, first: bool) -> list[int]:
    """The definition: each piece ends where the ids of all text up to it leave those of the whole.

    Quadratic in the pieces, so the code does it since the last special token.
    """
    whole = tokenizer("".join(piece.text for piece in chunk), add_special_tokens=first).input_ids
    ends = []
    for count in range(1, len(chunk)):
        text = "".join(piece.text for piece in chunk[:count])
        head = tokenizer(text, add_special_tokens=first).input_ids
        pairs = enumerate(zip(head, whole, strict=False))
        ends.append(next((n for n, (a, b) in pairs if a != b), min(len(head), len(whole))))
    return [*ends, len(whole)]


TEXTS = st.text(alphabet="aé. \n\t\u00a0肺🫁1<", min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, min_size=2, max_size=9), images=st.integers(0, 2))
@pytest.mark.parametrize("name", ["vicuna_v1", "huatuo_v1", "chatml"])
def test_pieces_end_where_the_definition_says(
    name: str, texts: list[str], images: int, mistral: Any, qwen: Any
) -> None:
    from student_train.models import prompts

    template = template_named(name)
    turns = talk("<image>\n" * images + texts[0], *texts[1:])
    tokenizer = mistral if name == "vicuna_v1" else qwen
    for number, chunk in enumerate(prompts._chunks(prompts._pieces(turns, template))):
        found = prompts._tokenize(chunk, tokenizer, first=number == 0)
        assert found[1] == ends_by_prefixes(chunk, tokenizer, first=number == 0)


@pytest.mark.parametrize("name", ["vicuna_v1", "huatuo_v1", "chatml"])
def test_a_conversation_costs_what_its_length_says(name: str, mistral: Any, qwen: Any) -> None:
    """Letters given to the tokenizer, beyond the text itself: once a piece, not once a prefix."""
    from student_train.models import prompts

    inner = mistral if name == "vicuna_v1" else qwen
    given_letters = []

    class Counting:
        all_special_tokens = inner.all_special_tokens
        convert_tokens_to_ids = staticmethod(inner.convert_tokens_to_ids)
        get_added_vocab = staticmethod(inner.get_added_vocab)

        def __call__(self, text: str, **options: Any) -> Any:
            given_letters.append(len(text))
            return inner(text, **options)

    turns = talk(*(["What is seen here, and where?", "A mass in the left lung."] * 40))
    chunks = prompts._chunks(prompts._pieces(turns, template_named(name)))
    for number, chunk in enumerate(chunks):
        prompts._tokenize(chunk, cast("Any", Counting()), first=number == 0)
    written = sum(len(piece.text) for chunk in chunks for piece in chunk)
    # The whole once, and of each piece no more than its turn and the special token before it.
    assert sum(given_letters) <= 4 * written


@pytest.mark.parametrize("name", TEMPLATES)
def test_another_instruction_stands_for_the_system_message(name: str, qwen: Any) -> None:
    """Where a template has none it stands before the words of the first question, once."""
    template, words = TEMPLATES[name], "Be vague."
    assert template.system in template.start
    turns = [Turn("human", "<image>\nWhat?"), Turn("gpt", "It."), Turn("human", "Why?")]
    plain, other = (
        encode_prompt(turns, template, qwen, PATCHES, IMAGE, instruction=instruction)
        for instruction in (None, words)
    )
    text, changed = (
        qwen.decode([token for token in one.input_ids if token != IMAGE]) for one in (plain, other)
    )
    if template.system:
        assert changed == text.replace(template.system, words)
    else:
        assert changed == text.replace("What?", f"{words} What?")
    assert [one.end - one.start for one in other.images] == [PATCHES]
