"""The web server of the chat endpoint: Python's own `http.server` with a pool of threads."""

import json
import secrets
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from queue import Empty
from typing import NamedTuple

from pipelines.pooled import PooledServer, print_fault
from pipelines.serve.asked import Asked, Refused, asked_of
from pipelines.serve.batches import Batches, Job, News
from shared.characters import broken_text

IDLE_SECONDS = 30  # that a connection may say nothing
UNREAD_SECONDS, UNREAD_BLOCKS = 2, 10_000  # that the rest of a refused body may take
LONGEST_LENGTH = 18  # digits of a Content-Length
LOOK_SECONDS = 0.1  # between looks whether a waiting client is still there
SPARE_THREADS = 8  # that refuse, and answer /health, while all others wait for answers
LOOPBACK = ("127.0.0.1", "localhost")
_KINDS = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "server_error",
    HTTPStatus.INTERNAL_SERVER_ERROR: "server_error",
}


class Bounds(NamedTuple):
    """What a request may be."""

    body: int  # bytes
    pixels: int  # of one image
    tokens: int  # of an answer
    together: int  # requests of a batch
    waiting: int  # requests in the queue


class Server(PooledServer):
    """Answers under `host` and `port` (0: a free one); raises OSError where that is taken.

    `token` is what a client must bring, where one is given.
    """

    def __init__(
        self, batches: Batches, model: str, bounds: Bounds, host: str, port: int, token: str | None
    ) -> None:
        self.batches, self.model, self.bounds, self.token = batches, model, bounds, token
        self.began, self.local = int(time.time()), host in LOOPBACK
        threads = bounds.together + bounds.waiting + SPARE_THREADS
        super().__init__(host, port, Handler, threads)

    def server_close(self) -> None:
        """Stop listening, and finish the answers that clients wait for."""
        super().server_close()
        self.batches.close()
        self.pool.shutdown()


class Handler(BaseHTTPRequestHandler):
    """Answers one request; a connection is closed after it."""

    server: Server
    timeout = IDLE_SECONDS
    server_version, sys_version = "medalign", ""
    _read = False  # the request's body

    def do_GET(self) -> None:
        """Answer what asks about the server."""
        self._guarded(self._about)

    def do_POST(self) -> None:
        """Answer a chat request."""
        self._guarded(self._chat)

    def log_message(self, *_: object) -> None:
        """Say nothing: questions are patients'."""

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            self._check_client()
            act()
        except Refused as error:
            self._fault(error.status, str(error))
        except OSError:
            raise  # the client went away
        except Exception as error:  # the other requests go on
            print_fault()
            name = type(error).__name__
            line = f"the server failed ({name}); its log has the rest"
            with suppress(OSError):
                self._fault(HTTPStatus.INTERNAL_SERVER_ERROR, line)

    def _check_client(self) -> None:
        host = self.headers.get("Host", "")
        if self.server.local and host.rpartition(":")[0] not in LOOPBACK and host not in LOOPBACK:
            # a foreign name bound to 127.0.0.1 (DNS rebinding)
            raise Refused(HTTPStatus.FORBIDDEN, "this server answers to 127.0.0.1 and localhost")
        if self.server.token is None or self.path == "/health":
            return
        given = self.headers.get("Authorization", "")
        if not secrets.compare_digest(given.encode(), f"Bearer {self.server.token}".encode()):
            raise Refused(HTTPStatus.UNAUTHORIZED, "the token is missing or another")

    def _about(self) -> None:
        if self.path == "/health":
            return self._json(HTTPStatus.OK, {"status": "ok"})
        if self.path != "/v1/models":
            raise Refused(HTTPStatus.NOT_FOUND, f"there is no {self.path.partition('?')[0]}")
        one = {"id": self.server.model, "object": "model", "created": self.server.began}
        self._json(HTTPStatus.OK, {"object": "list", "data": [one | {"owned_by": "medalign"}]})

    def _chat(self) -> None:
        if self.path != "/v1/chat/completions":
            raise Refused(HTTPStatus.NOT_FOUND, f"there is no {self.path.partition('?')[0]}")
        bounds = self.server.bounds
        decoding = self.server.batches.decoding.name
        asked = asked_of(self._body(), self.server.model, bounds.tokens, bounds.pixels, decoding)
        job = self.server.batches.submit(asked)
        try:
            if asked.stream:
                self._stream(job, asked)
            else:
                self._whole(job)
        except OSError:
            self.server.batches.leave(job)
            raise

    def _body(self) -> object:
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # what a foreign web page cannot send unasked
            raise Refused(HTTPStatus.BAD_REQUEST, "the Content-Type is application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the request says no Content-Length")
        if len(length) > LONGEST_LENGTH or int(length) > self.server.bounds.body:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body has {length[:LONGEST_LENGTH]} bytes; {self.server.bounds.body} at most",
            )
        try:
            data = self.rfile.read(int(length))
            self._read = True
            body = json.loads(data)
        except (ValueError, RecursionError):
            raise Refused(HTTPStatus.BAD_REQUEST, "the body is no JSON") from None
        if broken_text(body) is not None:
            raise Refused(HTTPStatus.BAD_REQUEST, "a text holds half of a character (a cut emoji?)")
        return body

    def _news(self, job: Job) -> News:
        """Wait for the next news; raises OSError where the client has gone meanwhile."""
        while True:
            try:
                return job.news.get(timeout=LOOK_SECONDS)
            except Empty:
                readable, _, _ = select.select([self.connection], [], [], 0)
                if readable and not self.connection.recv(1, socket.MSG_PEEK):
                    raise ConnectionResetError("the client went away") from None

    def _whole(self, job: Job) -> None:
        text = ""
        while not (news := self._news(job)).finish:
            if news.fault:
                raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR, news.fault)
            text += news.text
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": news.finish,
            "logprobs": None,
        }
        body = self._named("chat.completion") | {"choices": [choice], "usage": _usage(job)}
        self._json(HTTPStatus.OK, body)

    def _stream(self, job: Job, asked: Asked) -> None:
        head = self._named("chat.completion.chunk")
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()

        def send(delta: dict[str, str], finish: str | None = None) -> None:
            self._event(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

        send({"role": "assistant", "content": ""})
        while not (news := self._news(job)).finish:
            if news.fault:
                return self._event(_error(HTTPStatus.INTERNAL_SERVER_ERROR, news.fault))
            send({"content": news.text})
        send({}, news.finish)
        if asked.usage:
            self._event(head | {"choices": [], "usage": _usage(job)})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, data: object) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")

    def _named(self, kind: str) -> dict[str, object]:
        return {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.server.model,
        }

    def _fault(self, status: HTTPStatus, line: str) -> None:
        self._json(status, _error(status, line))
        if self.command == "POST" and not self._read:
            # A socket closed over unread bytes is reset, and the client may lose the reply.
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(UNREAD_SECONDS)
            for _ in range(UNREAD_BLOCKS):
                if not self.rfile.read1():
                    break

    def _json(self, status: HTTPStatus, data: object) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)


def _error(status: HTTPStatus, line: str) -> dict[str, object]:
    kind = _KINDS.get(status, "invalid_request_error")
    return {"error": {"message": line, "type": kind, "param": None, "code": status.value}}


def _usage(job: Job) -> dict[str, int]:
    return {
        "prompt_tokens": job.length,
        "completion_tokens": job.tokens,
        "total_tokens": job.length + job.tokens,
    }
