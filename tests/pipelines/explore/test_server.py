"""The server by its sockets: who is let in, what is served, and what is not."""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from pipelines.explore.opening import open_explorer
from pipelines.explore.server import ASSETS, Server

pytestmark = pytest.mark.integration
ANSWERS = {
    f"{arm} + greedy": [("yes", {"closed_accuracy_strict": 1.0})] * 120
    for arm in ("LoRA", "MEDALIGN")
}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def send(
    server: Server, path: str, method: str = "GET", known: bool = True, **headers: str
) -> Answer:
    """Send a request as it is written, its path not put in order."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    if known:
        fields["Cookie"] = f"{server.cookie}={server.token}"
    connection.putrequest(method, path, skip_host="Host" in fields)
    for name, value in fields.items():
        connection.putheader(name, value)
    connection.endheaders()
    reply = connection.getresponse()
    answer = Answer(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
    connection.close()
    return answer


@pytest.fixture
def server(tmp_path: Path, written: Any, served: Callable[..., Server]) -> Server:
    """120 items; the images of the first five lead out of the image root, that of the sixth not."""
    root = tmp_path / "images"
    root.mkdir()
    secret = tmp_path / "secret.png"
    levels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(levels).save(secret)
    Image.fromarray(levels[::-1]).save(root / "own.png")
    (root / "link.png").symlink_to(secret)
    (root / "up").symlink_to(tmp_path)
    shown = [
        "../secret.png",
        str(secret),
        "link.png",
        "up/secret.png",
        "./../secret.png",
        "own.png",
    ]
    images = [[name] for name in shown] + [[]] * 114
    folder = written(ANSWERS, images=images)
    return served(tmp_path, folder)


def test_a_page_of_the_list(server: Server) -> None:
    first = send(server, "/api/items").json
    assert [one["place"] for one in first["items"]] == list(range(50))
    assert (first["following"], first["total"]) == (50, 120)
    last = send(server, "/api/items?from=100").json
    assert [one["place"] for one in last["items"]] == list(range(100, 120))
    assert last["following"] is None
    assert send(server, "/api/items?turn=right&from=110").json["searched"] == 10
    assert send(server, "/api/items?turn=wrong").json["items"] == []
    assert send(server, "/api/run").json["items"] == 120


@pytest.mark.parametrize("place", range(5))
def test_no_image_outside_the_root_is_served(server: Server, place: int) -> None:
    for path in ("/picture", "/outlines", "/api/maps"):
        answer = send(server, f"{path}?item={place}&image=0")
        assert answer.status == 403
        assert "leads out of the image root" in answer.json["error"]
    answer = send(server, f"/api/similarity?item={place}&image=0&patch=0")
    assert answer.status == 403


def test_an_image_of_the_root_is_served(server: Server, tmp_path: Path) -> None:
    answer = send(server, "/picture?item=5&image=0")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    shown = np.asarray(Image.open(io.BytesIO(answer.body)))
    assert np.array_equal(shown, np.asarray(Image.open(tmp_path / "images" / "own.png")))


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.png", "/../../../../etc/passwd", "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc/passwd", "/style.css/../../secret.png", "/page/../opening.py",
        "/server.py", "/opening.py", "/images/own.png", "/picture/../../secret.png",
        "/\\..\\secret.png", "/style.css%00.png", "/evaluation/result.json", "/index.html",
    ],
)  # fmt: skip
def test_no_path_is_a_file(server: Server, path: str) -> None:
    answer = send(server, path)
    assert answer.status == 404
    assert answer.json == {"error": "there is no such page"}


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("/picture", 400), ("/picture?item=../secret.png", 400), ("/picture?item=-1", 400),
        ("/picture?item=5&image=0x0", 400), ("/picture?item=1e3", 400), ("/picture?item=٣", 400),
        ("/picture?item=9999999999999", 400), ("/picture?item=120", 422),
        ("/picture?item=5&image=1", 422), ("/picture?item=6", 422), ("/api/item?item=120", 422),
        ("/api/items?kind=%3Cscript%3E", 422), ("/api/items?turn=gained&a=7", 422),
        ("/api/items?from=-5", 400),
    ],
)  # fmt: skip
def test_questions_that_mean_nothing_get_one_line(server: Server, query: str, status: int) -> None:
    from urllib.parse import quote

    answer = send(server, quote(query, safe="/?=&%<>"))
    assert answer.status == status
    [(key, line)] = answer.json.items()
    assert key == "error"
    assert "\n" not in line


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example:80",
     "", "0.0.0.0:{port}", "127.0.0.1@evil.example", "[::2]:{port}"],
)  # fmt: skip
def test_a_foreign_name_for_this_machine_reads_nothing(server: Server, host: str) -> None:
    """DNS rebinding: a page of another site whose name now means 127.0.0.1, cookie and all."""
    name = host.format(port=server.port)
    for path in ("/", "/api/run", "/picture?item=5", f"/?token={server.token}"):
        answer = send(server, path, Host=name)
        assert answer.status == 403
        assert "answers to 127.0.0.1" in answer.json["error"]
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}", "localhost:{port}", "localhost:1", "localhost"]
)
def test_loopback_names_are_let_in(server: Server, host: str) -> None:
    """Another port too, as behind `ssh -L`."""
    assert send(server, "/api/run", Host=host.format(port=server.port)).status == 200


def test_who_lacks_the_token_reads_nothing(server: Server) -> None:
    for path in [*ASSETS, "/api/run", "/picture?item=5"]:
        answer = send(server, path, known=False)
        assert answer.status == 403
        assert "whole address" in answer.json["error"]
    wrong = "x" * len(server.token)
    for cookie in (f"{server.cookie}={wrong}", f"{server.cookie}=", server.cookie, "=;;==", "é=1"):
        answer = send(server, "/api/run", known=False, Cookie=cookie)
        assert answer.status == 403
    assert send(server, f"/?token={wrong}", known=False).status == 403
    answer = send(server, f"/?token={server.token}", known=False)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    name, _, rest = answer.headers["set-cookie"].partition("=")
    value, *attributes = rest.split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes)
    assert send(server, "/api/run", known=False, Cookie=f"{name}={value}").status == 200


def test_only_the_page_itself_has_models_loaded(server: Server) -> None:
    own = f"http://127.0.0.1:{server.port}"
    path = "/api/ask?arm=LoRA&item=5"
    assert send(server, path).status == 404  # no link loads a model
    foreign: list[dict[str, Any]] = [
        {},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{server.port + 1}"},
        {"Origin": own, "Sec_Fetch_Site": "cross-site"},
        {"Origin": own, "Sec_Fetch_Site": "same-site"},
    ]
    for headers in foreign:
        answer = send(server, path, "POST", **headers)
        assert answer.status == 403
        assert "only the page itself" in answer.json["error"]
    answer = send(server, path, "POST", Origin=own, Sec_Fetch_Site="same-origin")
    assert answer.status == 422
    assert "no arm 'LoRA'" in answer.json["error"]  # this run has none


def test_every_answer_carries_the_policy(server: Server) -> None:
    for path in [*ASSETS, "/api/run", "/picture?item=5", "/picture?item=0", "/nowhere"]:
        for method in ("GET", "HEAD"):
            headers = send(server, path, method).headers
            policy = dict(
                part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
            )
            assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["img-src"] == "'self'"
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert "access-control-allow-origin" not in headers
    answer = send(server, "/style.css", "HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) > 1000


def test_the_page_needs_no_network_and_no_inline_script() -> None:
    from pipelines.explore import server as module

    folder = Path(module.__file__).with_name("page")
    assert {name for name, _ in ASSETS.values()} == {file.name for file in folder.iterdir()}
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8")
        assert "http:" not in text
        assert "https:" not in text
        assert "innerHTML" not in text
        assert " style=" not in text
        assert "onclick=" not in text
        assert max(len(line) for line in text.split("\n")) <= 100


def test_it_listens_at_the_loopback_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert socket.inet_aton(server.server_address[0])[0] == 127


def test_many_ask_at_once_and_one_says_nothing(server: Server) -> None:
    from concurrent.futures import ThreadPoolExecutor

    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda n: send(server, f"/api/item?item={n}"), range(60)))
    assert [one.json["id"] for one in answers] == [f"id {place}" for place in range(60)]
    for one in silent:
        one.close()


def test_the_command_serves_until_it_is_interrupted(run: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    # A job in a shell's background ignores the signal, and so would its children.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    starter = [sys.executable, "-c", f"{heard}from pipelines.cli import main; main()", "explore"]
    process = subprocess.Popen(
        [*starter, "--run", str(run)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("open http://127.0.0.1:")
    address = line.removeprefix("open ").strip()
    host, _, query = address.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host)
    connection.request("GET", f"/{query}")
    reply = connection.getresponse()
    assert reply.status == 303
    cookie = reply.headers["Set-Cookie"].split(";")[0]
    connection.close()
    connection.request("GET", "/api/run", headers={"Cookie": cookie})
    assert json.loads(connection.getresponse().read())["title"] == "run"
    connection.close()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "stopped" in errors
    assert "Traceback" not in errors


def test_a_port_that_is_taken_is_one_line(run: Path, server: Server) -> None:
    from typer.testing import CliRunner

    from pipelines.cli import app
    from shared.errors import UserError

    words = ["explore", "--run", str(run), "--port", str(server.port)]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, UserError)
    assert f"cannot listen at port {server.port}" in str(done.exception)


def test_a_fault_of_one_request_leaves_the_server(
    run: Path, served: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    explorer = open_explorer(run, run / "evaluation")
    explorer.close()  # its files are gone
    server = served(run)
    server.explorer, whole = explorer, server.explorer
    answer = send(server, "/api/item?item=1")
    assert answer.status == 500
    assert "the terminal of `medalign explore` shows where" in answer.json["error"]
    assert "Traceback" in capsys.readouterr().err
    server.explorer = whole
    assert send(server, "/api/item?item=1").json["id"] == "0-1"
