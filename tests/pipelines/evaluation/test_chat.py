"""A conversation: what the model is shown at each turn, and the terminal's lines."""

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.decoding.methods import decoding
from pipelines.evaluation.chat import Conversation
from pipelines.evaluation.generate import generate_answer
from pipelines.evaluation.loading import Loaded, load_student
from shared.errors import UserError
from tests.fixtures.runs import write_run

pytestmark = pytest.mark.integration
FIRST, SECOND = "Is the liver here?", "And the lung?"


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("chat") / "run", images=2)


@pytest.fixture(scope="module")
def student(small_run: Path) -> Loaded:
    return load_student(small_run / "medalign", "cpu")


def by_transformers(student: Loaded, text: str, pixels: torch.Tensor) -> str:
    """Answer a prompt that is written out, by transformers' own greedy search."""
    processor = student.processor
    tokenizer: Any = processor.tokenizer
    ids: list[int] = []
    for number, piece in enumerate(text.split("<image>")):
        if number:
            ids += [processor.image_token_id] * processor.image_tokens
        ids += tokenizer(piece).input_ids  # this tokenizer begins nothing by a token
    inputs = torch.tensor([ids])
    end = tokenizer.convert_tokens_to_ids("</s>")
    found = student.model.generate(
        input_ids=inputs, attention_mask=torch.ones_like(inputs), pixel_values=pixels,
        max_new_tokens=5, do_sample=False, eos_token_id=end,
        suppress_tokens=[processor.image_token_id],
    )  # fmt: skip
    return tokenizer.decode(found[0, inputs.shape[1] :], skip_special_tokens=True).strip()


def test_a_later_answer_sees_the_whole_conversation(small_run: Path, student: Loaded) -> None:
    images = [str(small_run / "data" / f"{number}.png") for number in (0, 1)]
    talk = Conversation(student, decoding("greedy"), max_new_tokens=5)
    talk.show(images[0])
    first = talk.ask(FIRST)
    assert first == generate_answer(
        small_run, images[0], FIRST, method="greedy", max_new_tokens=5, device="cpu"
    )
    talk.show(images[1])
    second = talk.ask(SECOND)
    assert [turn.role for turn in talk.turns] == ["human", "gpt"] * 2
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
    )
    told = f"USER: <image>\n{FIRST} ASSISTANT: {first}</s> USER: <image>\n{SECOND} ASSISTANT:"
    pixels = student.processor.encode(["", ""], [[images[0]], [images[1]]])["pixel_values"]
    assert second == by_transformers(student, system + told, pixels)
    talk.forget()
    assert talk.ask(SECOND) == generate_answer(
        small_run, [], SECOND, method="greedy", max_new_tokens=5, device="cpu"
    )


def test_a_refused_question_leaves_the_conversation(small_run: Path, student: Loaded) -> None:
    talk = Conversation(student, decoding("greedy"), max_new_tokens=5)
    talk.show(str(small_run / "data" / "0.png"))
    with pytest.raises(UserError, match="</s>"):
        talk.ask("What </s> is this?")
    with pytest.raises(UserError, match="positions"):
        talk.ask("a" * 5000)
    with pytest.raises(UserError, match="no image at"):
        talk.show(str(small_run / "nothing.png"))
    assert talk.turns == []
    talk.ask("<image> What is this?")  # a mark that shows nothing
    assert talk.turns[0].text == "<image>\nWhat is this?"


def test_the_lines_of_a_terminal(small_run: Path) -> None:
    image = str(small_run / "data" / "0.png")
    lines = [FIRST, "", "/image nowhere.png", "/new", f"/image {image}", FIRST, "/help", "/quit"]
    words = ["chat", "--run", str(small_run), "--image", image, "--max-new-tokens", "5"]
    done = CliRunner().invoke(app, [*words, "--device", "cpu"], input="\n".join(lines))
    assert done.exit_code == 0, done.output
    answer = generate_answer(
        small_run, image, FIRST, method="greedy", max_new_tokens=5, device="cpu"
    )
    assert done.stdout.split("\n")[:-1] == [answer or "(nothing)"] * 2
    assert "error: no image at nowhere.png" in done.stderr
    assert "Not for clinical use" in done.stderr


def test_what_is_wrong_is_said_before_the_model_is_loaded(tmp_path: Path, small_run: Path) -> None:
    for words in (
        ["--run", str(tmp_path)],
        ["--run", str(small_run), "--image", "nowhere.png"],
        ["--run", str(small_run), "--decode", "all"],
    ):
        done = CliRunner().invoke(app, ["chat", *words])
        assert isinstance(done.exception, UserError)
