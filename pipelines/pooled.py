"""A web server whose connections are answered by a pool of threads."""

import socketserver
import traceback
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from socket import socket

from shared.console import stderr


def print_fault() -> None:
    """Write the traceback of what is being handled to the log; it holds no value of a request."""
    stderr.print(traceback.format_exc(), markup=False)


class PooledServer(socketserver.TCPServer):
    """Python's own server under `host` and `port` (0: a free one), with `threads` that answer.

    Raises
    ------
    OSError
        The port is taken.
    """

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self, host: str, port: int, handler: type[BaseHTTPRequestHandler], threads: int
    ) -> None:
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="serve")
        super().__init__((host, port), handler)

    @property
    def port(self) -> int:
        """The port that it listens at."""
        return int(self.server_address[1])

    def process_request(
        self, request: socket | tuple[bytes, socket], client_address: object
    ) -> None:
        """Hand a connection to a thread of the pool."""
        self.pool.submit(self._answer, request, client_address)

    def _answer(self, request: socket | tuple[bytes, socket], client_address: object) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the client went away
        except Exception:  # in the pool's future nobody would see it
            print_fault()
        finally:
            self.shutdown_request(request)
