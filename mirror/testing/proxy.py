"""A proxy that stands before any registry and fails on demand."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from urllib.parse import urlsplit

import httptools
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mirror.serve.server import abort
from mirror.testing.faults import Faults
from mirror.testing.registry import FaultyServer, TlsFiles

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
        ValueError: `upstream` is no URL of a server.
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
        app: ASGIApp = _Forward(*at, context)
        for layer in reversed(self._middleware()):
            app = layer.cls(app, *layer.args, **layer.kwargs)
        self._app = app


class _Forward:
    """Every request on a connection of its own."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        self._host, self._port, self._context = host, port, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
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
            await _pass_answer(scope, reader, send)
        finally:
            sending.cancel()
            # What the registry did not want to read is its own affair.
            await asyncio.gather(sending, return_exceptions=True)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _live(receive: Receive, send: Send) -> None:
    for happened in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{happened}.complete"})


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


async def _pass_answer(scope: Scope, reader: asyncio.StreamReader, send: Send) -> None:
    answer = _Parsed(scope["method"] == "HEAD")
    async for message in answer.messages(reader):
        await send(message)
    if not answer.whole:
        await abort(scope)


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
        """What is to be sent on."""
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
