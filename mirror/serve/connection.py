"""Hanging up: what ASGI cannot say, the server's protocol lets through (`server.py`)."""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope

EXTENSION = "mirror.connection"


async def abort(scope: Scope) -> None:
    """Break the connection at once; what is not on the wire yet is lost.

    Raises:
        RuntimeError: the app runs under another server than ours.
    """
    _transport(scope).abort()
    for _ in range(3):  # the server learns of it in the loop's next turns
        await asyncio.sleep(0)


async def close(scope: Scope, receive: Receive) -> None:
    """Send what is written, then close the connection, though the answer is not complete.

    Raises:
        RuntimeError: as `abort`.
    """
    _transport(scope).close()
    while (await receive())["type"] != "http.disconnect":
        pass


def _transport(scope: Scope) -> asyncio.Transport:
    transport = scope.get("extensions", {}).get(EXTENSION, {}).get("transport")
    if not isinstance(transport, asyncio.Transport):
        raise RuntimeError("cutting connections takes mirror.serve's own server")
    return transport
