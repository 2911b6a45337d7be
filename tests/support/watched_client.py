"""Looking at the requests of a client as they leave it, and at their answers."""

from __future__ import annotations

import threading
from collections.abc import Callable

import httpx

from mirror.registry import RegistryClient


class _Watched(httpx.BaseTransport):
    def __init__(
        self,
        inner: httpx.BaseTransport,
        sent: Callable[[httpx.Request], None],
        answered: Callable[[httpx.Response], None],
    ) -> None:
        self._inner, self._sent, self._answered = inner, sent, answered
        self._lock = threading.RLock()  # lets callers count without one of their own

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            self._sent(request)
        response = self._inner.handle_request(request)
        with self._lock:
            self._answered(response)
        return response

    def close(self) -> None:
        self._inner.close()


def watch(
    client: RegistryClient,
    *,
    sent: Callable[[httpx.Request], None] = lambda request: None,
    answered: Callable[[httpx.Response], None] = lambda response: None,
) -> None:
    """Call `sent` before each request of `client` and `answered` after each head of an answer.

    Threads call them one at a time.
    """
    wire = client._transport._wire
    wire.connections = _Watched(wire.connections, sent, answered)
