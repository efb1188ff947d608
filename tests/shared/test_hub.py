"""The hub is asked once; where it does not answer, its library works from its cache alone."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from shared.hub import offline_if_unreachable

pytestmark = pytest.mark.unit


class Answers(BaseHTTPRequestHandler):
    asked = 0

    def do_HEAD(self):
        type(self).asked += 1
        self.send_response(404)  # whatever it says, it answers
        self.end_headers()


@pytest.fixture
def online(monkeypatch):
    """Let this process ask hubs, and only those of the test."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_hub_that_answers_is_asked_on(online, monkeypatch):
    with HTTPServer(("127.0.0.1", 0), Answers) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
        assert offline_if_unreachable()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not offline_if_unreachable()
        hub.shutdown()
    assert Answers.asked == 1


def test_one_that_does_not_is_left_alone_from_then_on(online, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and nobody listens
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert not offline_if_unreachable()
    assert constants.HF_HUB_OFFLINE
