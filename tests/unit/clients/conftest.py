"""A remote that answers what the test says, on a real socket."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from clients.base import Client, StaticToken

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass(frozen=True)
class Seen:
    """A request that arrived, and over which connection."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int


def answer(status: int = 200, body: bytes | str = b"{}", **headers: str) -> Answer:
    """A whole answer; `_` in the names of headers stands for `-`."""
    raw = body if isinstance(body, bytes) else body.encode()

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers and status != 204:
            handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)

    return send


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """No answer: the connection ends."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


@dataclass
class Remote:
    """The server. `answers` are given one after another, the last of them for ever; `stopped` frees those who wait."""

    url: str
    answers: list[Answer] = field(default_factory=lambda: [answer()])
    seen: list[Seen] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    connections: int = 0
    open: list[socket.socket] = field(default_factory=list)

    def silence(self, handler: BaseHTTPRequestHandler) -> None:
        """No answer, for as long as the test lasts."""
        self.stopped.wait(30)
        handler.close_connection = True

    def end_connections(self) -> None:
        """As a server does with those that were idle for too long."""
        for connection in self.open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are part of the game."""


def _handler_of(remote: Remote) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            with lock:
                remote.connections += 1
                remote.open.append(self.connection)
                self.number = remote.connections

        def __getattr__(self, name: str) -> Any:
            if name.startswith("do_"):
                return self._reply
            raise AttributeError(name)

        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                remote.seen.append(Seen(self.command, self.path, dict(self.headers), body, self.number))
                send = remote.answers.pop(0) if len(remote.answers) > 1 else remote.answers[0]
            send(self)

        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

    return Handler


@pytest.fixture
def remote() -> Iterator[Remote]:
    """Started, and answering `{}`."""
    server = _Server(("127.0.0.1", 0), BaseHTTPRequestHandler)
    remote = Remote(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = _handler_of(remote)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield remote
    remote.stopped.set()
    remote.end_connections()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def connect(remote: Remote) -> Iterator[Callable[..., Client]]:
    """Clients of the remote, or of another `url`; closed after the test."""
    made: list[Client] = []

    def make(url: str = remote.url, **options: Any) -> Client:
        token = StaticToken("Authorization", "Bearer s3cret-token")
        made.append(Client(url, **{"auth": token, "timeout": 5.0, **options}))
        return made[-1]

    yield make
    for client in made:
        client.close()
