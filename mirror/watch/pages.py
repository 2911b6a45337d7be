"""What the daemon answers over HTTP: `/healthz`, `/readyz`, `/metrics`, and the webhook `/notify`.

The webhook takes CNCF distribution's notifications (its documentation, "Work with notifications").
"""

from __future__ import annotations

import hmac
import json
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mirror.watch.daemon import Daemon
from mirror.watch.metrics import CONTENT_TYPE

_MAX_ENVELOPE_BYTES = 4 << 20
_CHANGES = frozenset({"push", "mount", "delete"})


def create_app(daemon: Daemon, *, notify_token: str | None = None) -> Starlette:
    """The pages of `daemon`. With a token, notifications must carry it as their bearer."""

    async def healthz(_: Request) -> Response:
        alive = daemon.alive()
        return PlainTextResponse("ok" if alive else "a thread ended", 200 if alive else 500)

    async def readyz(_: Request) -> Response:
        document = daemon.state.to_document()
        return JSONResponse(document, 200 if document["ready"] else 503)

    async def metrics(_: Request) -> Response:
        return Response(daemon.metrics.page(), media_type=CONTENT_TYPE)

    async def notify(request: Request) -> Response:
        if notify_token is not None and not _authorised(request, notify_token):
            return PlainTextResponse("a bearer token is needed", 401)
        try:
            body = await _read(request)
        except ClientDisconnect:
            return Response(status_code=400)
        if body is None:
            return PlainTextResponse("too large", 413)
        try:
            changed = tells_of_change(json.loads(body))
        except (ValueError, RecursionError) as err:
            return PlainTextResponse(f"not a notification: {err}", 400)
        if changed:
            daemon.wake()
        return Response(status_code=202)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/notify", notify, methods=["POST"]),
        ]
    )


def tells_of_change(envelope: Any) -> bool:
    """Whether a notification's events change what a registry holds; pulls do not.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(envelope, dict) or not isinstance(events := envelope.get("events"), list):
        raise ValueError("there is no list of events")
    if not all(isinstance(event, dict) for event in events):
        raise ValueError("an event is no object")
    return any(event.get("action") in _CHANGES for event in events)


def _authorised(request: Request, token: str) -> bool:
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())


async def _read(request: Request) -> bytes | None:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_ENVELOPE_BYTES:
            return None
    return bytes(body)
