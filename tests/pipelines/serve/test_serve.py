"""`medalign serve` as a process of its own, asked through its socket."""

import base64
import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipelines.decoding.methods import decodings
from pipelines.evaluation.chat import Conversation
from pipelines.evaluation.loading import Loaded, load_student
from pipelines.serve.asked import Asked, Refused
from pipelines.serve.batches import Batches, Job
from shared.records import Turn
from tests.fixtures.runs import QUESTIONS, write_run

pytestmark = pytest.mark.integration
TOKENS = 6
START = "import sys; from pipelines.cli import main; sys.exit(main())"
MODEL = "small"


class Process(NamedTuple):
    process: subprocess.Popen
    port: int


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("serve") / MODEL, images=2)


def start(run: Path, *flags: str) -> Process:
    words = ["serve", "--run", str(run), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", START, *words, "--max-new-tokens", str(TOKENS), *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    line = process.stdout.readline()
    assert line.startswith(f"model {MODEL} at http://127.0.0.1:"), line + process.stderr.read()
    return Process(process, int(line.strip().removesuffix("/v1").rpartition(":")[2]))


def end(server: Process) -> None:
    server.process.send_signal(signal.SIGTERM)
    out, err = server.process.communicate()
    assert server.process.returncode == 0, out + err


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Process]:
    found = start(run, "--max-body", "200000", "--max-pixels", "10000")
    yield found
    end(found)


def ask(
    port: int, body: object, path: str = "/v1/chat/completions", **headers: str
) -> tuple[int, bytes]:
    link = http.client.HTTPConnection("127.0.0.1", port)
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    link.request("POST", path, sent, {"Content-Type": "application/json"} | headers)
    reply = link.getresponse()
    return reply.status, reply.read()


def picture(path: Path) -> dict[str, Any]:
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def body_of(text: str, *images: Path, **more: object) -> dict[str, Any]:
    parts = [*map(picture, images), {"type": "text", "text": text}]
    return {"model": MODEL, "messages": [{"role": "user", "content": parts}], **more}


def chat(student: Loaded, text: str, *images: Path, method: str = "greedy", seed: int = 0) -> str:
    [decoding] = decodings([method])
    talk = Conversation(student, decoding, TOKENS, seed)
    for image in images:
        talk.show(str(image))
    return talk.ask(text)


@pytest.fixture(scope="module")
def student(run: Path) -> Loaded:
    return load_student(run / "medalign", "cpu")


def images_of(run: Path) -> list[Path]:
    return [run / "data" / f"{number}.png" for number in (0, 1)]


def streamed(raw: bytes) -> list[dict[str, Any]]:
    lines = [one.removeprefix("data: ") for one in raw.decode().split("\n\n") if one]
    assert lines.pop() == "[DONE]"
    return [json.loads(one) for one in lines]


def test_an_answer_is_that_of_chat(run: Path, server: Process, student: Loaded) -> None:
    first, second = images_of(run)
    for images in ((first,), (first, second), ()):
        expected = chat(student, QUESTIONS[0][0], *images)
        status, raw = ask(server.port, body_of(QUESTIONS[0][0], *images))
        found = json.loads(raw)
        assert status == 200, raw
        assert found["choices"][0]["message"]["content"] == expected
        marks = [Turn("human", "<image>\n" * len(images) + QUESTIONS[0][0])]
        length = student.processor.encode_turns(marks, list(images))["input_ids"].shape[1]
        usage = found["usage"]
        assert usage["prompt_tokens"] == length
        assert usage["total_tokens"] == length + usage["completion_tokens"]
        more = {"stream": True, "stream_options": {"include_usage": True}}
        status, raw = ask(server.port, body_of(QUESTIONS[0][0], *images, **more))
        chunks = streamed(raw)
        words = [one["choices"][0]["delta"].get("content", "") for one in chunks[:-1]]
        assert "".join(words) == expected
        assert chunks[-1]["usage"] == usage
        assert chunks[-2]["choices"][0]["finish_reason"] == found["choices"][0]["finish_reason"]
    # W counts: LoRA's adapter alone says something else
    plain = load_student(run / "lora", "cpu")
    assert chat(plain, QUESTIONS[0][0], first) != chat(student, QUESTIONS[0][0], first)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_is_that_of_chat(
    role: str, run: Path, server: Process, student: Loaded
) -> None:
    [image, _] = images_of(run)
    system = "Say which organ it is, in a word."
    talk = Conversation(student, decodings(["greedy"])[0], TOKENS, system=system)
    talk.show(str(image))
    expected = talk.ask(QUESTIONS[0][0])
    assert expected != chat(student, QUESTIONS[0][0], image)
    body = body_of(QUESTIONS[0][0], image)
    for content in (system, [{"type": "text", "text": system}]):
        told = [{"role": role, "content": content}, *body["messages"]]
        found = json.loads(ask(server.port, body | {"messages": told})[1])
        assert found["choices"][0]["message"]["content"] == expected
        length = found["usage"]["prompt_tokens"]
    said = [Turn("human", f"<image>\n{QUESTIONS[0][0]}")]
    ids = student.processor.encode_turns(said, [image], system=system)["input_ids"]
    assert length == ids.shape[1]


def test_a_drawn_answer_is_that_of_chat_with_the_seed(
    run: Path, server: Process, student: Loaded
) -> None:
    [image, _] = images_of(run)
    drawn = set()
    for seed in range(3):
        expected = chat(student, QUESTIONS[1][0], image, method="nucleus", seed=seed)
        body = body_of(QUESTIONS[1][0], image, temperature=1, top_p=0.9, seed=seed)
        found = json.loads(ask(server.port, body)[1])
        assert found["choices"][0]["message"]["content"] == expected
        drawn.add(expected)
    assert len(drawn) > 1


def test_a_stop_text_ends_the_answer_before_it(run: Path, server: Process, student: Loaded) -> None:
    [image, _] = images_of(run)
    whole = chat(student, QUESTIONS[0][0], image)
    stop = whole[len(whole) // 2 :][:2]
    expected = whole[: whole.index(stop)].strip()
    found = json.loads(ask(server.port, body_of(QUESTIONS[0][0], image, stop=stop))[1])
    assert found["choices"][0]["message"]["content"] == expected
    assert found["choices"][0]["finish_reason"] == "stop"
    raw = ask(server.port, body_of(QUESTIONS[0][0], image, stop=[stop], stream=True))[1]
    words = [one["choices"][0]["delta"].get("content", "") for one in streamed(raw)]
    assert "".join(words) == expected


def text_body(content: object, **more: object) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **more}


def told_body(*roles: str) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": one, "content": "x"} for one in roles]}


def image_body(url: object) -> dict[str, Any]:
    return text_body([{"type": "image_url", "image_url": {"url": url}}])


def large() -> dict[str, Any]:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.radial_gradient("L").save(file, "PNG")  # 256 x 256
    return image_body("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())


BAD = [
    (b"{", 400, "no JSON"),
    ([], 400, "no JSON object"),
    (
        b'{"model": "small", "messages": [{"role": "user", "content": "a \\ud800 b"}]}',
        400,
        "half of a character",
    ),
    (b" " * 200_001, 413, "200000 at most"),
    ({"model": MODEL}, 400, "messages is a list"),
    ({"model": "other", "messages": []}, 404, "there is 'small'"),
    (text_body("x", n=2), 400, "n is not supported"),
    (text_body("x", tools=[{}]), 400, "tools is not supported"),
    (text_body("x", max_tokens=TOKENS + 1), 400, "max_tokens is a whole number of 1 to 6"),
    (text_body("x", temperature=-1), 400, "temperature is a number of 0 to 2"),
    (text_body("x", top_p=0), 400, "top_p"),
    (text_body("x", seed=1.5), 400, "seed is a whole number"),
    (text_body("x", stop=[""]), 400, "none empty"),
    (text_body("x", stream=1), 400, "stream is true or false"),
    (text_body(7), 400, "a text, or a list"),
    (text_body([{"type": "input_audio"}]), 400, "a part is"),
    (text_body("What </s> is it?"), 400, "</s>"),
    (text_body("a" * 5000), 400, "positions"),
    (image_body("https://example.org/a.png"), 400, "fetches nothing"),
    (image_body("data:image/png;base64,%%"), 400, "not base64"),
    (image_body("data:image/png;base64,AAAA"), 400, "cannot be read"),
    (image_body("/etc/passwd"), 400, "data URL"),
    (large(), 400, "pixels"),
    ({"model": MODEL, "messages": [{"role": "system", "content": "x"}]}, 400, "the user's"),
    (told_body("user", "system"), 400, "is the first one"),
    (told_body("system", "developer", "user"), 400, "is the first one"),
    (told_body("tool", "user"), 400, "system, user or assistant"),
    ({"model": MODEL, "messages": [{"role": "assistant", "content": "x"}]}, 400, "the user's"),
]


@pytest.mark.parametrize(("body", "status", "line"), BAD)
def test_a_bad_request_gets_its_status_and_one_line(
    server: Process, body: object, status: int, line: str
) -> None:
    found, raw = ask(server.port, body)
    error = json.loads(raw)["error"]
    assert found == status
    assert line in error["message"]
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"


def test_a_length_of_many_digits_gets_a_reply(server: Process) -> None:
    """Python reads no number of more than 4,300 digits."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as link:
        link.sendall(f"{head}\r\nContent-Length: {'9' * 5000}\r\n\r\n".encode())
        link.shutdown(socket.SHUT_WR)
        assert link.recv(64).split()[1] == b"413"


def test_other_paths_hosts_and_kinds_of_content(server: Process) -> None:
    assert ask(server.port, {}, "/v1/embeddings")[0] == 404
    assert ask(server.port, text_body("x"), Host="evil.example")[0] == 403
    assert ask(server.port, text_body("x"), **{"Content-Type": "text/plain"})[0] == 400
    link = http.client.HTTPConnection("127.0.0.1", server.port)
    link.request("GET", "/v1/models")
    assert [one["id"] for one in json.loads(link.getresponse().read())["data"]] == [MODEL]


def test_a_token_and_an_end_that_finishes_answers(run: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    found = start(run, "--token-file", str(tmp_path / "token"))
    assert ask(found.port, text_body("x"))[0] == 401
    assert ask(found.port, text_body("x"), Authorization="Bearer other")[0] == 401
    assert ask(found.port, text_body("x"), Authorization="Bearer secret")[0] == 200
    end(found)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", found.port))


def asked(text: str, **more: Any) -> Asked:
    settings: dict[str, Any] = {
        "system": "", "turns": [Turn("human", text)], "images": [], "item": text,
        "max_new_tokens": TOKENS, "temperature": 0.0, "top_p": 1.0, "seed": 0,
        "stop": (), "stream": False, "usage": False,
    }  # fmt: skip
    return Asked(**(settings | more))


def told(job: Job) -> tuple[str, str]:
    text = ""
    while not (news := job.news.get()).finish:
        assert not news.fault
        text += news.text
    return text, news.finish


class Held:
    """Holds the first batch of a queue until it is let go, so that the next requests wait."""

    def __init__(self, batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.sizes = threading.Event(), queue.SimpleQueue[int]()
        answer = batches._answer

        def held(jobs: Any) -> None:
            self.sizes.put(len(jobs))
            self.go.wait()
            answer(jobs)

        monkeypatch.setattr(batches, "_answer", held)


def test_waiting_requests_are_one_batch_and_get_what_they_get_alone(
    student: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [
        asked(QUESTIONS[0][0]),
        asked("Which organ is this, and is it normal?", max_new_tokens=3),
        asked(QUESTIONS[1][0], temperature=1.0, seed=3),
        asked(QUESTIONS[1][0], temperature=0.5, seed=4, stream=True),
    ]
    batches = Batches(student, 4, 4)
    alone = [told(batches.submit(one)) for one in wanted]
    held = Held(batches, monkeypatch)
    first = batches.submit(asked("x"))
    assert held.sizes.get() == 1
    jobs = [batches.submit(one) for one in wanted]
    with pytest.raises(Refused, match="wait already") as caught:
        batches.submit(asked("x"))
    assert caught.value.status == 429
    batches.leave(jobs[0])  # its client went away: another one has its place
    jobs[0] = batches.submit(wanted[0])
    held.go.set()
    told(first)
    assert held.sizes.get() == 4
    order = [told(job) for job in jobs]
    assert order == alone
    batches.close()
    with pytest.raises(Refused, match="stopping"):
        batches.submit(asked("x"))


def test_a_client_that_goes_away_ends_its_answer(student: Loaded) -> None:
    batches = Batches(student, 1, 4)
    job = Job(asked("x"), {}, student.processor.reworded("x", 0), gone=True)
    assert batches._tell(job, [])
    batches.close()
