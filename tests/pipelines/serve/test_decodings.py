"""A served decoding method: answers are those of `chat`, in batches, streamed and whole."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.decoding.methods import NAMES, decoding
from pipelines.evaluation.chat import Conversation
from pipelines.evaluation.loading import Loaded, load_student
from pipelines.serve.asked import Asked, Refused, asked_of
from pipelines.serve.batches import Batches
from shared.errors import UserError
from shared.records import Turn
from tests.fixtures.runs import QUESTIONS, write_run
from tests.pipelines.serve.test_serve import Held, told

pytestmark = pytest.mark.integration
QUESTION, OTHER = QUESTIONS[0][0], "Which organ is this, and is it normal?"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("served") / "small", images=2)


@pytest.fixture(scope="module")
def student(run: Path) -> Loaded:
    return load_student(run / "medalign", "cpu")


def request(run: Path, text: str, image: int | None, most: int, **more: Any) -> Asked:
    shown = [] if image is None else [Image.open(run / "data" / f"{image}.png").convert("RGB")]
    mark = "<image>\n" * len(shown)
    settings: dict[str, Any] = {
        "system": "", "turns": [Turn("human", mark + text)], "images": shown, "item": text,
        "max_new_tokens": most, "temperature": 0.0, "top_p": 1.0, "seed": 3, "stop": (),
        "stream": False, "usage": False,
    }  # fmt: skip
    return Asked(**(settings | more))


def by_chat(student: Loaded, name: str, run: Path, text: str, image: int | None, most: int) -> str:
    talk = Conversation(student, decoding(name), most, seed=3)
    if image is not None:
        talk.show(str(run / "data" / f"{image}.png"))
    return talk.ask(text)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_chat(
    name: str, run: Path, student: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [(QUESTION, 0, 6), (OTHER, 1, 3), (OTHER, None, 3)]
    expected = [by_chat(student, name, run, *one) for one in wanted]
    batches = Batches(student, 4, 8, decoding(name))
    held = Held(batches, monkeypatch)
    first = batches.submit(request(run, "x", None, 1))
    assert held.sizes.get() == 1
    jobs = [batches.submit(request(run, *one)) for one in wanted]
    streams = [batches.submit(request(run, *one, stream=True)) for one in wanted]
    held.go.set()
    told(first)
    found = [told(job) for job in (*jobs, *streams)]
    batches.close()
    assert [text for text, _ in found] == expected * 2
    sizes = []
    while not held.sizes.empty():
        sizes.append(held.sizes.get())
    # beam and OPERA choose by the answer's length, so that other limits are other batches
    assert sizes == ([1, 2, 1, 2] if name in ("beam", "opera") else [4, 2])


def test_seeds_part_the_batches_of_a_method_that_draws(
    run: Path, student: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Batches(student, 8, 8, decoding("vcd"))
    held = Held(batches, monkeypatch)
    first = batches.submit(request(run, "x", None, 1))
    assert held.sizes.get() == 1
    seeds = [3, None, 3, None, 4, None]
    jobs = [batches.submit(request(run, QUESTION, 0, 6, seed=seed)) for seed in seeds]
    held.go.set()
    told(first)
    found = [told(job)[0] for job in jobs]
    batches.close()
    assert [held.sizes.get(), held.sizes.get()] == [4, 2]
    assert found[0] == found[2] == by_chat(student, "vcd", run, QUESTION, 0, 6)
    assert len({found[1], found[3], found[5]}) > 1  # no seed: each request draws its own


def test_a_stop_text_and_a_stream_under_a_method(run: Path, student: Loaded) -> None:
    for name in ("vcd", "beam"):
        whole = by_chat(student, name, run, QUESTION, 0, 6)
        stop = whole[len(whole) // 2 :][:2]
        batches = Batches(student, 1, 1, decoding(name))
        for stream in (False, True):
            job = batches.submit(request(run, QUESTION, 0, 6, stop=(stop,), stream=stream))
            assert told(job) == (whole[: whole.index(stop)].strip(), "stop")
        batches.close()


@pytest.mark.parametrize("key", ["temperature", "top_p"])
def test_a_methods_settings_are_its_own(key: str) -> None:
    body = {"model": "small", "messages": [{"role": "user", "content": "x"}], key: 1}
    assert asked_of(body, "small", 6, 100).seed is None
    with pytest.raises(Refused, match=f"decodes by vcd with settings of its own; no {key}"):
        asked_of(body, "small", 6, 100, "vcd")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--decode", "all"], "name one decoding method"),
        (["--decode", "beem"], "beam"),
        (["--decode", "vcd", "--set", "vcd.alpha=x"], "vcd.alpha"),
    ],
)
def test_what_cannot_be_served(run: Path, words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["serve", "--run", str(run), *words])
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
