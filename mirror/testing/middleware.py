"""How faults are played: an application with the faults of a server in front of it.

One place for all servers, so that the embedded registry and a proxy fail in the same ways.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mirror.serve.call import error_response
from mirror.serve.server import abort, close, connection_of
from mirror.testing.faults import (
    Action,
    Answer,
    ChangeHeaders,
    CorruptBody,
    CutResponse,
    CutUpload,
    Delay,
    Drip,
    Encode,
    EndlessBody,
    Faults,
    IgnoreRange,
    LoseAnswer,
    Redirect,
    Refuse,
    RepeatAnswer,
    ShiftRange,
    Stall,
    WrongLength,
)

_CODES = {401: "UNAUTHORIZED", 403: "DENIED", 429: "TOOMANYREQUESTS"}
_ENCODERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


class _CutError(Exception):
    """Ends the work on a request after its connection was cut."""


class FaultMiddleware:
    """Applies `faults` to the requests of `app`."""

    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self._app, self._faults = app, faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        app = self._app
        for action in self._faults.strike(scope["method"], _target(scope)):
            app = _struck(app, action)
        try:
            await app(scope, receive, send)
        except _CutError:
            return


def _target(scope: Scope) -> str:
    return f"{scope['path']}?{scope.get('query_string', b'').decode('latin-1')}"


def _struck(app: ASGIApp, action: Action) -> ASGIApp:
    """`app` with one fault in front of it."""

    async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
        match action:
            case Answer():
                await _answer(action)(scope, receive, send)
            case Redirect(to):
                target = _target(scope).removesuffix("?")
                await RedirectResponse(f"{to}{target}")(scope, receive, send)
            case Refuse():
                await abort(scope)
            case EndlessBody(piece):
                await _endless(piece, scope, send)
            case Delay(seconds):
                await asyncio.sleep(seconds)
                await app(scope, receive, send)
            case IgnoreRange():
                await app(_with_range(scope, None), receive, send)
            case ShiftRange(by):
                await app(_with_range(scope, by), receive, send)
            case CutUpload(after):
                await app(scope, _cut_upload(scope, receive, after), send)
            case LoseAnswer():

                async def lose(_message: Message) -> None:
                    await abort(scope)
                    raise _CutError

                await app(scope, receive, lose)
            case CutResponse() | Stall() | CorruptBody() | Drip():
                await app(scope, receive, _FaultyBody(action, scope, receive, send).send)
            case ChangeHeaders() | WrongLength() | Encode() | RepeatAnswer():
                whole = _Whole()
                await app(scope, receive, whole.take)
                await _send_changed(whole, action, scope, receive, send)

    return faulty


def _answer(action: Answer) -> Response:
    if action.body is not None:
        headers = {"content-type": "application/json", **action.headers}
        return Response(action.body, action.status, headers)
    code = _CODES.get(action.status, "UNKNOWN")
    return error_response(action.status, code, "fault on demand", action.headers)


async def _endless(piece: bytes, scope: Scope, send: Send) -> None:
    connection = connection_of(scope)
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while scope["method"] != "HEAD" and not connection.is_closing():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body"})


def _with_range(scope: Scope, by: int | None) -> Scope:
    """The request with its range moved, or without one; other forms than `bytes=N-` stay."""
    headers = []
    for name, value in scope["headers"]:
        if name != b"range":
            headers.append((name, value))
        elif by is not None:
            unit, _, rest = value.decode("latin-1").partition("=")
            first, _, last = rest.partition("-")
            if first.isdigit():
                rest = f"{int(first) + by}-{int(last) + by if last.isdigit() else ''}"
            headers.append((name, f"{unit}={rest}".encode("latin-1")))
    return {**scope, "headers": headers}


def _cut_upload(scope: Scope, receive: Receive, after: int) -> Receive:
    left = after
    over = False

    async def cutting() -> Message:
        nonlocal left, over
        if over:
            await abort(scope)
            return {"type": "http.disconnect"}
        message = await receive()
        body = message.get("body", b"")
        if len(body) > left:
            over = True
            return {"type": "http.request", "body": body[:left], "more_body": True}
        left -= len(body)
        return message

    return cutting


class _FaultyBody:
    """An outgoing body, which is cut, slowed or changed as it passes."""

    def __init__(
        self,
        action: CutResponse | Stall | CorruptBody | Drip,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._action, self._scope, self._receive, self._send = action, scope, receive, send
        self._sent = 0
        match action:
            case CorruptBody(at) | CutResponse(at) | Stall(at):
                self._at = at
            case Drip():
                self._at = -1

    async def send(self, message: Message) -> None:
        body = message.get("body", b"")
        if isinstance(self._action, Drip):
            await self._drip(body, self._action)
            await self._send({**message, "body": b""} if body else message)
            return
        here = self._at - self._sent
        self._sent += len(body)
        if message["type"] != "http.response.body" or not 0 <= here < len(body):
            await self._send(message)
            return
        if isinstance(self._action, CorruptBody):
            body = body[:here] + bytes([body[here] ^ 1]) + body[here + 1 :]
            await self._send({**message, "body": body})
            return
        await self._send({"type": "http.response.body", "body": body[:here], "more_body": True})
        if isinstance(self._action, CutResponse):
            if self._action.reset:
                await abort(self._scope, reset=True)
            else:
                await close(self._scope, self._receive)
            raise _CutError
        await asyncio.sleep(self._action.seconds)
        await self._send({**message, "body": body[here:]})

    async def _drip(self, body: bytes, action: Drip) -> None:
        for offset in range(0, len(body), action.size):
            if connection_of(self._scope).is_closing():
                raise _CutError
            piece = body[offset : offset + action.size]
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(action.seconds)


class _Whole:
    """An answer that is held back until it is complete."""

    def __init__(self) -> None:
        self.start: dict[str, Any] = {}
        self.body = bytearray()

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = {**message, "headers": list(message.get("headers", []))}
        else:
            self.body += message.get("body", b"")

    @property
    def headers(self) -> MutableHeaders:
        """Those of the answer; changes of them are changes of it."""
        return MutableHeaders(raw=self.start["headers"])


async def _send_changed(
    whole: _Whole,
    action: ChangeHeaders | WrongLength | Encode | RepeatAnswer,
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    if not whole.start:  # the client is gone
        return
    headers = whole.headers
    body = b"" if scope["method"] == "HEAD" else bytes(whole.body)
    announced = len(body)
    match action:
        case ChangeHeaders(changes):
            for name, value in changes.items():
                if value is None:
                    del headers[name]
                else:
                    headers[name] = value
        case Encode(coding) if body:
            body = _ENCODERS[coding](body)
            announced = len(body)
            headers["content-encoding"] = coding
        case WrongLength(by):
            announced = max(0, len(body) + by)
    if scope["method"] != "HEAD" and whole.start["status"] not in (204, 304):
        headers["content-length"] = str(announced)
    await send(whole.start)
    if announced > len(body) and scope["method"] != "HEAD":
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await close(scope, receive)
        raise _CutError
    await send({"type": "http.response.body", "body": body[:announced]})
    # Behind the answer, where the client expects the next one.
    if isinstance(action, RepeatAnswer):
        connection_of(scope).write(_raw(whole.start["status"], headers, body))
    elif len(body) > announced:
        connection_of(scope).write(body[announced:])


def _raw(status: int, headers: Headers, body: bytes) -> bytes:
    """An answer as it is on the wire."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
