"""A deadline for the head of an answer: status line and headers, interim answers included.

The read time-out of httpx starts anew with every byte, so a server that sends one a second, or
`100 Continue` for ever, would never run into it. What bounds the waiting as a whole is hung into
the connection's stream by the trace extension, httpcore's way to tell which step it is at.
"""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import httpx

Trace: TypeAlias = Callable[[str, Mapping[str, Any]], None]
"""The `trace` extension of a request: called with a step's name and what belongs to it."""

_OPENED = (".connect_tcp.complete", ".start_tls.complete")
_AWAITED = "http11.receive_response_headers"


class _Waiting(threading.local):
    """The moment until which this thread waits for a head; None while it does not."""

    until: float | None = None


_waiting = _Waiting()


class Sockets:
    """The sockets of one client's connections. Thread-safe.

    Closing a socket does not wake a thread that waits to read from it; shutting it down does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()  # under the lock
        self._shut = False  # likewise

    def add(self, stream: Any) -> None:
        """Remember the socket of a connection that was just opened."""
        found = stream.get_extra_info("socket")
        if isinstance(found, socket.socket):
            with self._lock:
                self._open.add(found)
                late = self._shut
            if late:  # it was being opened while the others were shut
                _shut(found)

    def shut(self) -> None:
        """End every connection, whatever waits for it."""
        with self._lock:
            self._shut = True
            sockets = list(self._open)
        for one in sockets:
            _shut(one)


def _shut(one: socket.socket) -> None:
    with suppress(OSError):  # closed already
        # Not TLS's own, which would touch what another thread reads with.
        socket.socket.shutdown(one, socket.SHUT_RDWR)


def deadline_for_head(limit_s: float, sockets: Sockets | None = None) -> Trace:
    """For one request: httpx.ReadTimeout unless the head is whole `limit_s` after its sending.

    Connections that are opened for it are added to `sockets`.
    """

    def trace(step: str, about: Mapping[str, Any]) -> None:
        if step.endswith(_OPENED):
            _bound(about["return_value"])
            if sockets is not None:
                sockets.add(about["return_value"])
        elif step == f"{_AWAITED}.started":
            _waiting.until = time.monotonic() + limit_s
        elif step.startswith(_AWAITED):
            _waiting.until = None

    return trace


def _bound(stream: Any) -> None:
    """Let reads from a connection end at the deadline of the thread that reads."""
    read = stream.read

    def bounded(max_bytes: int, timeout: float | None = None) -> Any:
        until = _waiting.until
        if until is None:
            return read(max_bytes, timeout)
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise httpx.ReadTimeout("the head of the answer does not come to its end")
        return read(max_bytes, left_s if timeout is None else min(timeout, left_s))

    stream.read = bounded
