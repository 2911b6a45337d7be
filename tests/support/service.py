"""A name that leads to servers on this machine, as a headless Service does in a cluster."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def resolving(name: str) -> Iterator[list[tuple[str, int]]]:
    """While the block lasts `name` resolves to all of the list that is handed out: host and port.

    The port that is asked for does not count, since one machine cannot lend it to everybody.
    """
    servers: list[tuple[str, int]] = []
    getaddrinfo = socket.getaddrinfo

    def find(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in (name, name.encode()) or not servers:
            return getaddrinfo(host, port, *args, **kwargs)
        return [one for server in servers for one in getaddrinfo(*server, *args, **kwargs)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", find)
        yield servers
