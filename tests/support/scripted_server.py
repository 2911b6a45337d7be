"""A server on loopback that does what a test's script says, wrong HTTP included."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self, TypeAlias
from urllib.parse import parse_qs, urlsplit


@dataclass
class Request:
    """One request; the body is read on demand, so that a script may leave it unread."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    read: Callable[[int], bytes] = field(repr=False)

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length", "0"))

    @property
    def body(self) -> bytes:
        return self.read(self.length)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Reply:
    """An answer. `cut` sends so many bytes of the body and then breaks the connection."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Iterator[bytes] = b""
    length: int | None = None
    cut: int | None = None
    more: list[tuple[str, str]] = field(default_factory=list)
    """Headers that come several times."""


class Hangup(Exception):
    """Raised by a script to break the connection without an answer."""


Script: TypeAlias = Callable[[Request], Reply]


class ScriptedServer:
    """Serves `script` while the `with` block lasts; `log` has the requests in order.

    `mirror.testing` breaks the answers of a registry. This gives answers that no registry gives,
    and stands in for other servers, such as those of tokens.
    """

    def __init__(
        self,
        script: Script,
        *,
        at: tuple[str, int] = ("127.0.0.1", 0),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.script = script
        self.log: list[Request] = []
        self._answering = 0  # under the lock
        self._lock = threading.Lock()
        outer = self

        class Handler(_Handler):
            def answer(self, request: Request) -> Reply:
                with outer._lock:
                    outer.log.append(request)
                    outer._answering += 1
                try:
                    return outer.script(request)
                finally:
                    with outer._lock:
                        outer._answering -= 1

        self._server = _Server(at, Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def has_answered(self, method: str) -> bool:
        """Whether a request of that method came and no request is being worked on."""
        with self._lock:
            return not self._answering and any(one.method == method for one in self.log)

    def lines(self) -> list[str]:
        """The requests as `METHOD path`."""
        with self._lock:
            return [str(request) for request in self.log]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are part of the scripts


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self, request: Request) -> Reply:
        raise NotImplementedError

    def log_message(self, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        unread = int(self.headers.get("content-length", "0"))

        def read(count: int) -> bytes:
            nonlocal unread
            got = self.rfile.read(min(count, unread))
            unread -= len(got)
            return got

        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, parts.path, parse_qs(parts.query), headers, read)
        try:
            reply = self.answer(request)
        except Hangup:
            self._break()
            return
        if unread:
            self.close_connection = True
        self.send_response(reply.status)
        whole = reply.body if isinstance(reply.body, bytes) else None
        names = {name.lower() for name in reply.headers}
        if "content-length" not in names:
            length = reply.length if whole is None or reply.length is not None else len(whole)
            if length is not None:
                self.send_header("Content-Length", str(length))
            else:
                self.close_connection = True
        for name, value in [*reply.headers.items(), *reply.more]:
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if whole is not None:
            self.wfile.write(whole if reply.cut is None else whole[: reply.cut])
        else:
            for chunk in reply.body:
                assert isinstance(chunk, bytes)
                self.wfile.write(chunk)
        self.wfile.flush()
        if reply.cut is not None:
            self._break(hard=False)

    def _break(self, *, hard: bool = True) -> None:
        if hard:  # a reset, as a crashed machine or a firewall sends
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close() if hard else self.connection.shutdown(socket.SHUT_RDWR)


for _method in ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"):
    setattr(_Handler, f"do_{_method}", _Handler._serve)
