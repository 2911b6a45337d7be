"""A TCP line that breaks at bytes of the tester's choice, and counts what it carries."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Self

_PIECE = 65_536


class BreakingLine:
    """Carries connections to 127.0.0.1:`port` while the `with` block lasts.

    The connection that brings the client's byte number n, counted over all connections, is broken
    there, for each n of `offsets`. The first connections end behind as many bytes, of either way,
    as `budgets` say. `carried` are bytes that went from clients to the server.
    """

    def __init__(
        self, port: int, offsets: Iterable[int] = (), *, budgets: Iterable[int] = ()
    ) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()  # guards the next three
        self._offsets = sorted(offsets)
        self._threads: list[threading.Thread] = []
        self.carried = 0
        self.connections = 0
        self._budgets = list(budgets)
        self._acceptor = threading.Thread(target=self._accept)

    @property
    def cuts_left(self) -> int:
        """How many offsets were not reached yet."""
        with self._lock:
            return len(self._offsets)

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(5)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            # A reset discards what the kernel has not sent; a small buffer bounds how much that is.
            far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIECE)
            self.connections += 1
            budget = [self._budgets.pop(0) if self._budgets else sys.maxsize]
            for one, other, counted in ((near, far, True), (far, near, False)):
                thread = threading.Thread(target=self._carry, args=(one, other, counted, budget))
                thread.start()
                self._threads.append(thread)

    def _carry(
        self, one: socket.socket, other: socket.socket, counted: bool, budget: list[int]
    ) -> None:
        broken = False
        with suppress(OSError):
            while not broken and (piece := one.recv(_PIECE)):
                budget[0] -= len(piece)
                if budget[0] < 0:
                    break
                if counted:
                    piece, broken = self._counted(piece)
                other.sendall(piece)
        for sock in (one, other):
            if broken:  # a reset, as of a firewall that lost its state
                with suppress(OSError):
                    linger = struct.pack("ii", 1, 0)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _counted(self, piece: bytes) -> tuple[bytes, bool]:
        """What of `piece` still gets through, and whether the line breaks behind it."""
        with self._lock:
            broken = bool(self._offsets) and self.carried + len(piece) > self._offsets[0]
            if broken:
                piece = piece[: max(0, self._offsets.pop(0) - self.carried)]
            self.carried += len(piece)
            return piece, broken
