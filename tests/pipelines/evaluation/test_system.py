"""A system turn from a data file to training ids and to answers, each as the prompt written out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.evaluation.loading import Loaded, load_student
from pipelines.evaluation.result import read_answers
from shared.records import load_records
from student_train.data.samples import AlignmentData
from student_train.models.prompts import IGNORED
from tests.fixtures.runs import write_run

pytestmark = pytest.mark.integration
QUESTION, SYSTEM = "Is the liver here?", "Answer as a radiologist, in a word."


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("system") / "run", images=1)


@pytest.fixture(scope="module")
def student(small_run: Path) -> Loaded:
    return load_student(small_run / "medalign", "cpu")


def data_of(folder: Path, *systems: str) -> Path:
    rows = []
    for number, system in enumerate(systems):
        told = [{"from": "system", "value": system}] if system else []
        asked = {"from": "human", "value": f"<image>\n{QUESTION}"}
        turns = [*told, asked, {"from": "gpt", "value": "yes"}]
        rows.append({"id": str(number), "image": "0.png", "conversations": turns})
    (folder / "told.json").write_text(json.dumps(rows))
    return folder / "told.json"


def ids_of(student: Loaded, system: str, after: str) -> tuple[list[int], list[int]]:
    """The ids of vicuna_v1 with this system text, before and behind the image."""
    tokenizer: Any = student.processor.tokenizer
    pieces = f"{system} USER: <image>\n{QUESTION} ASSISTANT:{after}".split("<image>")
    before, behind = (tokenizer(piece).input_ids for piece in pieces)
    image = [student.processor.image_token_id] * student.processor.image_tokens
    return [*before, *image, *behind], before


def answer_of(student: Loaded, system: str, image: Path) -> str:
    """Answer by transformers' own greedy search."""
    ids, _ = ids_of(student, system, "")
    inputs = torch.tensor([ids])
    tokenizer: Any = student.processor.tokenizer
    found = student.model.generate(
        input_ids=inputs, attention_mask=torch.ones_like(inputs),
        pixel_values=student.processor.encode("", [image])["pixel_values"],
        max_new_tokens=5, do_sample=False, eos_token_id=tokenizer.convert_tokens_to_ids("</s>"),
        suppress_tokens=[student.processor.image_token_id],
    )  # fmt: skip
    return tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True).strip()


def called(*words: object, said: str | None = None) -> str:
    done = CliRunner().invoke(app, [*map(str, words), "--device", "cpu"], input=said)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def shown(text: str) -> str:
    """The letters of an answer that a terminal is shown, which are no control characters."""
    return "".join(one for one in text.strip() if one.isprintable())


def test_training_learns_the_answer_alone(small_run: Path, student: Loaded, tmp_path: Path) -> None:
    records = load_records(data_of(tmp_path, SYSTEM))
    root = small_run / "data"
    data = AlignmentData(records, root, student.processor, None, 4096, "error")
    sample: Any = data[0]
    ids, before = ids_of(student, SYSTEM, " yes</s>")
    assert sample["input_ids"] == ids
    learned = [label for label in sample["labels"] if label != IGNORED]
    assert student.processor.tokenizer.decode(learned).strip() == "yes</s>"
    assert sample["columns"] == [len(before)]


def test_every_command_answers_under_it(small_run: Path, student: Loaded, tmp_path: Path) -> None:
    image, other = small_run / "data" / "0.png", "Say nothing of the liver."
    expected = [answer_of(student, one, image) for one in (SYSTEM, other)]
    assert len(set(expected)) == 2
    words = ["evaluate", "--run", small_run / "medalign", "--image-root", small_run / "data"]
    words += ["--decode", "greedy", "--max-new-tokens", 5, "--out", tmp_path / "out", "--data"]
    for systems in ((SYSTEM,), (other, SYSTEM), ("", other)):  # the journal tells them apart
        called(*words, data_of(tmp_path, *systems))
        [file] = (tmp_path / "out" / "answers").glob("*")
        lines = read_answers(tmp_path / "out", file.stem)
        told = [line.get("system", "") for line in lines]
        assert told == list(systems)
        for one, line in zip(told, lines, strict=True):
            if one:
                assert line["prediction"] == expected[(SYSTEM, other).index(one)]
    about = ["--run", small_run, "--image", image, "--max-new-tokens", 5, "--decode", "greedy"]
    asked = ["generate", *about, "--question", QUESTION, "--system"]
    assert shown(called(*asked, SYSTEM)) == shown(expected[0])
    talked = called("chat", *about, "--system", other, said=QUESTION)
    assert shown(talked) == shown(expected[1])
