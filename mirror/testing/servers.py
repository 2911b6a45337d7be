"""Servers that fail on demand, on real sockets, and the logs of their requests.

One is a registry inside this process, the other a proxy that stands before any registry.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import urlsplit

import httptools
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mirror.serve.app import create_app
from mirror.serve.call import CLIENT_GONE, Auth
from mirror.serve.server import ZERO_COPY, ServerThread, abort, listen
from mirror.serve.store import ReadableStore
from mirror.testing.faults import Faults
from mirror.testing.middleware import FaultMiddleware


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A server's certificate, with the chain to its authority, and its key: PEM files."""

    certificate: Path
    key: Path


class FaultyServer:
    """A server on a port of its own while the `with` block lasts, with faults and a log.

    Port 0 takes a free port. `requests` records every request. `faults` may be changed at any
    time.
    """

    def __init__(
        self, *, host: str, port: int, tls: TlsFiles | None, faults: Faults | None
    ) -> None:
        self.faults = faults if faults is not None else Faults()
        self.requests = RequestLog()
        self._host, self._port, self._tls = host, port, tls
        self._thread: ServerThread | None = None
        self._app: Starlette

    def _middleware(self) -> list[Middleware]:
        """The middleware around an app, the outermost first."""
        return [
            Middleware(RequestLogMiddleware, log=self.requests),
            Middleware(FaultMiddleware, faults=self.faults),  # struck requests are in the log
        ]

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise ValueError("this server is running already")
        listener = listen(self._host, self._port)
        try:
            self._port = listener.getsockname()[1]  # a second `with` restarts on the same port
            tls = self._tls
            certificate, key = (tls.certificate, tls.key) if tls else (None, None)
            thread = ServerThread(self._app, listener, certificate=certificate, key=key)
            thread.start()
        except BaseException:
            listener.close()
            raise
        self._thread = thread
        return self

    def __exit__(self, *_error: object) -> None:
        if self._thread is not None:
            self._thread.stop()
            self._thread = None

    @property
    def port(self) -> int:
        """The port; 0 before the first start if it was left to the system."""
        return self._port

    @property
    def address(self) -> str:
        """`host:port`, as references begin with it."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._port}"

    @property
    def url(self) -> str:
        """`address` with its scheme."""
        return f"{'https' if self._tls else 'http'}://{self.address}"


class EmbeddedRegistry(FaultyServer):
    """Serves `storage` while the `with` block lasts.

        with EmbeddedRegistry(FolderStorage("/srv/images"), port=5000) as registry:
            print(registry.address)

    `create_app` explains `auth`, `read_only`, `page_limit` and `sparse_indexes`.
    """

    def __init__(
        self,
        storage: ReadableStore,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: TlsFiles | None = None,
        auth: Auth | None = None,
        faults: Faults | None = None,
        read_only: bool = False,
        page_limit: int | None = None,
        sparse_indexes: bool = False,
    ) -> None:
        super().__init__(host=host, port=port, tls=tls, faults=faults)
        self.storage = storage
        self._app = create_app(
            storage,
            auth=auth,
            read_only=read_only,
            page_limit=page_limit,
            sparse_indexes=sparse_indexes,
            middleware=self._middleware(),
        )


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request. `received` and `sent` count bytes of the bodies.

    `status` is None if the client got no answer. `headers` have lower-case names; they may hold
    credentials, so the repr leaves them out.
    """

    method: str
    path: str
    query: str
    status: int | None
    received: int
    sent: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)


class RequestLog:
    """Requests in the order in which they ended; thread-safe.

    A request is recorded before the last byte of its answer leaves, so a client that has the answer
    finds the request here. At most `limit` requests are kept; the oldest are dropped.
    """

    def __init__(self, limit: int | None = 100_000) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._requests: deque[RecordedRequest] = deque(maxlen=limit)
        self._active = 0
        self._peak = 0

    def __iter__(self) -> Iterator[RecordedRequest]:
        with self._lock:
            return iter(tuple(self._requests))

    def __len__(self) -> int:
        with self._lock:
            return len(self._requests)

    @property
    def peak(self) -> int:
        """The largest number of requests that were in progress at one time."""
        with self._lock:
            return self._peak

    def matching(
        self, method: str | None = None, path: str = "", status: int | None = None
    ) -> list[RecordedRequest]:
        """The requests of that method and status whose `path?query` matches `path`."""
        pattern = re.compile(path)
        return [
            request
            for request in self
            if method in (None, request.method)
            and status in (None, request.status)
            and pattern.search(f"{request.path}?{request.query}")
        ]

    def count(self, method: str | None = None, path: str = "", status: int | None = None) -> int:
        """How many `matching` finds."""
        return len(self.matching(method, path, status))

    def received(self, path: str = "") -> int:
        """Bytes of body that clients sent to `matching` paths."""
        return sum(request.received for request in self.matching(path=path))

    def sent(self, path: str = "") -> int:
        """Bytes of body that were sent to clients from `matching` paths."""
        return sum(request.sent for request in self.matching(path=path))

    def clear(self) -> None:
        """Forget the recorded requests; those in progress are recorded when they end."""
        with self._lock:
            self._requests.clear()
            self._peak = self._active

    def begin(self) -> None:
        """Note that a request began."""
        with self._lock:
            self._active += 1
            self._peak = max(self._peak, self._active)

    def end(self, request: RecordedRequest) -> None:
        """Record a request that ended."""
        with self._lock:
            self._active -= 1
            self._requests.append(request)


class RequestLogMiddleware:
    """Records every HTTP request of `app` in `log`."""

    def __init__(self, app: ASGIApp, log: RequestLog) -> None:
        self._app, self._log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # What the server would send itself could be neither counted nor struck.
        extensions = {**scope.get("extensions", {})}
        extensions.pop(ZERO_COPY, None)
        scope = {**scope, "extensions": extensions}
        watched = _Watched(scope, receive, send, self._log)
        self._log.begin()
        try:
            await self._app(scope, watched.receive, watched.send)
        except Exception:
            watched.status = watched.status or 500  # which is what the server answers
            raise
        finally:
            watched.record()


class _Watched:
    """One request's two streams, with counters."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, log: RequestLog) -> None:
        self._scope, self._receive, self._send, self._log = scope, receive, send, log
        self._received = self._sent = 0
        self._length: int | None = None  # bytes of the answer's body, as soon as that is known
        self._recorded = False
        self.status: int | None = None

    async def receive(self) -> Message:
        message = await self._receive()
        self._received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        body = self._scope["method"] != "HEAD"
        if message["type"] == "http.response.start":
            status = message["status"]
            self.status = None if status == CLIENT_GONE else status
            length = Headers(raw=message["headers"]).get("content-length") if body else "0"
            self._length = None if length is None else int(length)
        elif message["type"] == "http.response.body":
            self._sent += len(message.get("body", b"")) if body else 0
            if not message.get("more_body", False):
                self._length = self._sent
        if self._length is not None and self._sent >= self._length:
            self.record()  # before the client has the whole answer
        await self._send(message)

    def record(self) -> None:
        """Record the request, once."""
        if self._recorded:
            return
        self._recorded = True
        scope: Any = self._scope
        self._log.end(
            RecordedRequest(
                method=scope["method"],
                path=scope["path"],
                query=scope.get("query_string", b"").decode("latin-1"),
                status=self.status,
                received=self._received,
                sent=self._sent,
                headers=MappingProxyType(dict(Headers(scope=scope).items())),
            )
        )


_PIECE = 65536
_HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"expect", b"te", b"upgrade"}


class FaultyProxy(FaultyServer):
    """Passes requests on to the registry at `upstream` (a URL) while the `with` block lasts.

        with FaultyProxy("http://127.0.0.1:5000", faults=faults) as proxy:
            push_to(proxy.address)

    The registry sees the `Host` that the client called, so that its `Location` leads back here.
    `trust` says whom to believe at an `https` upstream; by default those whom the system trusts.
    The proxy itself speaks TLS with `tls`. A registry that does not answer is a 502 here.

    Raises:
        ValueError: `upstream` is not the URL of a server.
    """

    def __init__(
        self,
        upstream: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: TlsFiles | None = None,
        trust: ssl.SSLContext | None = None,
        faults: Faults | None = None,
    ) -> None:
        super().__init__(host=host, port=port, tls=tls, faults=faults)
        parts = urlsplit(upstream)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{upstream!r}: expected http://host:port or https://host:port")
        context = None
        if parts.scheme == "https":
            context = trust or ssl.create_default_context()
        at = (parts.hostname, parts.port or (443 if context else 80))
        self._app = Starlette(middleware=self._middleware())
        self._app.router.default = _ForwardingApp(*at, context)


class _ForwardingApp:
    """Every request on a connection of its own."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        self._host, self._port, self._context = host, port, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            reader, writer = await asyncio.open_connection(
                self._host, self._port, ssl=self._context
            )
        except OSError as err:
            text = f"the registry behind this proxy does not answer: {err}"
            await PlainTextResponse(text, 502)(scope, receive, send)
            return
        sending = asyncio.create_task(_send_request(scope, receive, writer))
        try:
            answer = _Parsed(scope["method"] == "HEAD")
            async for message in answer.messages(reader):
                await send(message)
            if not answer.whole:
                await abort(scope)
        finally:
            sending.cancel()
            # What the registry did not want to read is its own affair.
            await asyncio.gather(sending, return_exceptions=True)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _send_request(scope: Scope, receive: Receive, writer: asyncio.StreamWriter) -> None:
    query = scope["query_string"]
    target = scope["raw_path"] + (b"?" + query if query else b"")
    names = {name for name, _ in scope["headers"]}
    lines = [scope["method"].encode() + b" " + target + b" HTTP/1.1", b"connection: close"]
    lines += [b": ".join(pair) for pair in scope["headers"] if pair[0] not in _HOP_BY_HOP]
    chunked = b"transfer-encoding" in names
    if chunked:
        lines.append(b"transfer-encoding: chunked")
    writer.write(b"\r\n".join([*lines, b"", b""]))
    more = chunked or b"content-length" in names
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            writer.close()  # a client that broke off, as the registry would see it
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        writer.write(b"%x\r\n%b\r\n" % (len(body), body) if chunked and body else body)
        await writer.drain()
    if chunked:
        writer.write(b"0\r\n\r\n")
    await writer.drain()


class _Parsed:
    """An answer as ASGI messages; `whole` says whether the registry sent it to its end."""

    def __init__(self, head_only: bool) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._head_only = head_only
        self._headers: list[tuple[bytes, bytes]] = []
        self._messages: list[Message] = []
        self._sized = False
        self.whole = False

    async def messages(self, reader: asyncio.StreamReader) -> AsyncIterator[Message]:
        """What to send on."""
        while not self.whole:
            try:
                data = await reader.read(_PIECE)
                self._parser.feed_data(data)
            except (OSError, httptools.HttpParserError):
                data = b""
            self.whole = self.whole or (not data and bool(self._headers) and not self._sized)
            for message in self._messages:
                yield message
            self._messages = []
            if not data:
                break
        if self.whole:
            yield {"type": "http.response.body"}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        names = {name for name, _ in self._headers}
        self._sized = bool(names & {b"content-length", b"transfer-encoding"})
        kept = [pair for pair in self._headers if pair[0] not in _HOP_BY_HOP | {b"date"}]
        status = self._parser.get_status_code()
        self._messages.append({"type": "http.response.start", "status": status, "headers": kept})
        self.whole = self._head_only

    def on_body(self, body: bytes) -> None:
        message = {"type": "http.response.body", "body": body, "more_body": True}
        self._messages.append(message)

    def on_message_complete(self) -> None:
        self.whole = True
