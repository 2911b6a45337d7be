"""Looking at the requests of a client as they leave it, and at their answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from mirror.registry import RegistryClient
from mirror.registry.answers import Response
from mirror.registry.connections import Connections
from mirror.registry.http1 import Body, Patience

Sent = Callable[[str, str, Mapping[str, str]], None]
"""Hears of the method, the address and the header fields of a request."""


class _Watched(Connections):
    def __init__(
        self, inner: Connections, sent: Sent, answered: Callable[[Response], None]
    ) -> None:
        self._inner, self._heard_sent, self._heard_answered = inner, sent, answered
        self._one_at_a_time = threading.RLock()  # lets callers count without a lock of their own

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Body | None,
        patience: Patience,
    ) -> Response:
        with self._one_at_a_time:
            self._heard_sent(method, url, headers)
        response = self._inner.send(method, url, headers, body, patience)
        with self._one_at_a_time:
            self._heard_answered(response)
        return response

    def close(self) -> None:
        self._inner.close()


def watch(
    client: RegistryClient,
    *,
    sent: Sent = lambda method, url, headers: None,
    answered: Callable[[Response], None] = lambda response: None,
) -> None:
    """Call `sent` before each request of `client` and `answered` after each head of an answer.

    Threads call them one at a time.
    """
    wire = client._transport._wire
    wire.connections = _Watched(wire.connections, sent, answered)
