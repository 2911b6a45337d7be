"""Faults on demand: a server that fails like networks and registries do, at chosen requests.

faults = Faults(
    Fault(Answer(429, {"Retry-After": "1"}), method="PUT", path="/manifests/", nth=2),
    Fault(CutResponse(after=1000), path="/blobs/", times=None),
)
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mirror.serve.call import error_response
from mirror.serve.server import abort, close


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer with this status, headers and body instead of doing the work."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """None: an error body of the usual form."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "headers", MappingProxyType(dict(self.headers)))


@dataclass(frozen=True, slots=True)
class CutResponse:
    """Close the connection after `after` bytes of the answer's body."""

    after: int


@dataclass(frozen=True, slots=True)
class CutUpload:
    """Break the connection after `after` bytes of the request's body.

    A body that is not longer arrives as it is.
    """

    after: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Break the connection without an answer, before doing any work."""


@dataclass(frozen=True, slots=True)
class LoseAnswer:
    """Do the work, then break the connection before the first byte of the answer."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait before doing the work."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Stall:
    """Send `after` bytes of the answer's body, then nothing for `seconds`, then the rest."""

    after: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CorruptBody:
    """Flip one bit of the answer's byte at offset `at`, if the body is that long."""

    at: int


@dataclass(frozen=True, slots=True)
class IgnoreRange:
    """Answer as if the request had no `Range` header: with status 200 and the whole body."""


Action: TypeAlias = (
    Answer
    | CutResponse
    | CutUpload
    | Refuse
    | LoseAnswer
    | Delay
    | Stall
    | CorruptBody
    | IgnoreRange
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Strike `times` matching requests, beginning with the `nth` (counted from 1).

    A request matches if it has that `method` (None: any) and the regular expression `path` occurs
    in its `path?query`. `times` None means all from then on.
    """

    action: Action
    method: str | None = None
    path: str = ""
    nth: int = 1
    times: int | None = 1


class Faults:
    """The faults of a server. Thread-safe; they may be changed while it runs."""

    def __init__(self, *faults: Fault) -> None:
        self._lock = threading.Lock()  # guards _armed and _struck
        self._armed: list[_Armed] = [_Armed(fault) for fault in faults]
        self._struck = 0

    def add(self, *faults: Fault) -> None:
        """Add faults, which count requests from now on."""
        with self._lock:
            self._armed += [_Armed(fault) for fault in faults]

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._armed = []

    @property
    def struck(self) -> int:
        """How often faults have struck, so that a test can check that they did."""
        with self._lock:
            return self._struck

    def strike(self, method: str, target: str) -> list[Action]:
        """Count a request to `target` (`path?query`) and return what is to happen to it."""
        with self._lock:
            actions = [armed.fault.action for armed in self._armed if armed.hit(method, target)]
            self._struck += len(actions)
            return actions


class _Armed:
    """A fault with its count of matching requests."""

    def __init__(self, fault: Fault) -> None:
        self.fault, self._pattern, self._seen = fault, re.compile(fault.path), 0

    def hit(self, method: str, target: str) -> bool:
        fault = self.fault
        if fault.method not in (None, method) or not self._pattern.search(target):
            return False
        self._seen += 1
        end = None if fault.times is None else fault.nth + fault.times
        return self._seen >= fault.nth and (end is None or self._seen < end)


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
        query = scope.get("query_string", b"").decode("latin-1")
        app = self._app
        for action in self._faults.strike(scope["method"], f"{scope['path']}?{query}"):
            app = _struck(app, action)
        try:
            await app(scope, receive, send)
        except _CutError:
            return


def _struck(app: ASGIApp, action: Action) -> ASGIApp:
    """`app` with one fault in front of it."""

    async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
        match action:
            case Answer():
                await _answer(action)(scope, receive, send)
            case Refuse():
                await abort(scope)
            case Delay(seconds):
                await asyncio.sleep(seconds)
                await app(scope, receive, send)
            case IgnoreRange():
                headers = [pair for pair in scope["headers"] if pair[0] != b"range"]
                await app({**scope, "headers": headers}, receive, send)
            case CutUpload(after):
                await app(scope, _cut_upload(scope, receive, after), send)
            case LoseAnswer():

                async def lose(_message: Message) -> None:
                    await abort(scope)
                    raise _CutError

                await app(scope, receive, lose)
            case CutResponse() | Stall() | CorruptBody():
                await app(scope, receive, _Body(action, scope, receive, send).send)

    return faulty


def _answer(action: Answer) -> Response:
    if action.body is not None:
        headers = {"content-type": "application/json", **action.headers}
        return Response(action.body, action.status, headers)
    codes = {401: "UNAUTHORIZED", 403: "DENIED", 429: "TOOMANYREQUESTS"}
    code = codes.get(action.status, "UNKNOWN")
    return error_response(action.status, code, "fault on demand", action.headers)


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


class _Body:
    """An outgoing body, which is cut, stalled or changed at one offset."""

    def __init__(
        self, action: CutResponse | Stall | CorruptBody, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._action, self._scope, self._receive, self._send = action, scope, receive, send
        self._at = action.at if isinstance(action, CorruptBody) else action.after
        self._sent = 0

    async def send(self, message: Message) -> None:
        body = message.get("body", b"")
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
            await close(self._scope, self._receive)
            raise _CutError
        await asyncio.sleep(self._action.seconds)
        await self._send({**message, "body": body[here:]})
