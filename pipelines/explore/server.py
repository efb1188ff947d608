"""The explorer's web server: loopback only, one user, nothing served but the page and the run.

Python's own `http.server` with a pool of threads: requests are few and local, and a web framework
would be one more dependency that every installation carries. It lets through

- hosts that are names of this machine's loopback, so that no foreign name bound to 127.0.0.1 (DNS
  rebinding) reads a patient's image;
- who holds the token of the printed address, since other users of a shared machine reach its
  loopback too;
- fixed paths: a request names an item by its number, never a file.
"""

import secrets
from collections.abc import Mapping
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from pipelines.explore.explorer import Explorer
from pipelines.explore.pictures import Outside
from pipelines.explore.replies import Query, Refusal, Reply, error_reply
from pipelines.explore.routes import ACTS, READS, Route
from pipelines.pooled import PooledServer, print_fault
from shared.errors import UserError

LOOPBACK = "127.0.0.1"
NAMES = (LOOPBACK, "localhost", "[::1]")  # of a Host that is this machine
THREADS = 16
IDLE_SECONDS = 10  # that a connection may say nothing
ASSETS = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/app.js": ("app.js", "text/javascript"),
    "/item.js": ("item.js", "text/javascript"),
    "/panels.js": ("panels.js", "text/javascript"),
    "/tools.js": ("tools.js", "text/javascript"),
    "/colours.js": ("colours.js", "text/javascript"),
}
_FOLDER = Path(__file__).with_name("page")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-store",  # no patient's image stays in a browser's cache
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Server(PooledServer):
    """The server of one explorer; `serve_forever` and `server_close` are its life.

    Parameters
    ----------
    explorer
        What it shows.
    port
        0: a free one.

    Raises
    ------
    OSError
        The port is taken.
    """

    def __init__(self, explorer: Explorer, port: int = 0) -> None:
        self.explorer = explorer
        self.token = secrets.token_urlsafe(24)
        self.assets = {
            path: Reply(HTTPStatus.OK, f"{kind}; charset=utf-8", (_FOLDER / name).read_bytes())
            for path, (name, kind) in ASSETS.items()
        }
        super().__init__(LOOPBACK, port, Handler, THREADS)

    @property
    def address(self) -> str:
        """What the user opens; it holds the token."""
        return f"http://{LOOPBACK}:{self.port}/?token={self.token}"

    @property
    def cookie(self) -> str:
        """Name of the cookie that keeps the token; ports of one host share their cookies."""
        return f"medalign-{self.port}"

    def server_close(self) -> None:
        """Stop listening, and wait for what is being answered."""
        super().server_close()
        self.pool.shutdown(cancel_futures=True)


class Handler(BaseHTTPRequestHandler):
    """Answers one request; a connection is closed after it."""

    server: Server
    timeout = IDLE_SECONDS
    server_version, sys_version = "medalign", ""

    def do_GET(self) -> None:
        """Answer a request that changes nothing."""
        self._reply(READS)

    def do_HEAD(self) -> None:
        """Answer as to GET, without the body."""
        self._reply(READS)

    def do_POST(self) -> None:
        """Answer a request that loads a model."""
        self._reply(ACTS)

    def log_message(self, *_: object) -> None:
        """Say nothing: paths hold the token once."""

    def _reply(self, routes: Mapping[str, Route]) -> None:
        try:
            reply = self._answer(routes)
        except Refusal as error:
            reply = error_reply(error.status, str(error))
        except Outside as error:
            reply = error_reply(HTTPStatus.FORBIDDEN, str(error))
        except UserError as error:
            reply = error_reply(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except Exception as error:  # the other requests go on
            print_fault()
            name = type(error).__name__
            reply = error_reply(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                f"{name}: {error}; the terminal of `medalign explore` shows where",
            )
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in {**HEADERS, **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def _answer(self, routes: Mapping[str, Route]) -> Reply:
        host = self.headers.get("Host", "")
        if host.rpartition(":")[0] not in NAMES and host not in NAMES:
            raise Refusal(HTTPStatus.FORBIDDEN, "this page answers to 127.0.0.1 and localhost")
        split = urlsplit(self.path)
        given = dict(parse_qsl(split.query, keep_blank_values=True))
        if split.path == "/" and "token" in given:
            return self._let_in(given["token"])
        if not self._is_known():
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                "open the whole address that `medalign explore` printed, with its token",
            )
        if self.command == "POST":
            self._check_own(host)
        if split.path in self.server.assets and routes is READS:
            return self.server.assets[split.path]
        route = routes.get(split.path)
        if route is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "there is no such page")
        return route(self.server.explorer, Query(given))

    def _let_in(self, token: str) -> Reply:
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise Refusal(HTTPStatus.FORBIDDEN, "that token is of another `medalign explore`")
        cookie = f"{self.server.cookie}={token}; Path=/; HttpOnly; SameSite=Strict"
        headers = {"Location": "/", "Set-Cookie": cookie}
        return Reply(HTTPStatus.SEE_OTHER, "text/plain", b"", headers)

    def _is_known(self) -> bool:
        try:
            cookies = SimpleCookie(self.headers.get("Cookie", ""))
        except CookieError:
            return False
        found = cookies.get(self.server.cookie)
        return found is not None and secrets.compare_digest(
            found.value.encode(), self.server.token.encode()
        )

    def _check_own(self, host: str) -> None:
        """Refuse a request that another site's page makes."""
        origin = self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "same-origin")
        if origin != f"http://{host}" or site != "same-origin":
            raise Refusal(HTTPStatus.FORBIDDEN, "only the page itself may ask for this")
