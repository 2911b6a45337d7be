"""Sockets whose waits end when the work that waits is stopped, and what the network does to them.

All sockets are non-blocking. A wait is a `poll` in slices, and between two slices `check` is asked,
which raises once there is no more reason to wait. So a cancelled run leaves a connection at any
point, the client stays open, and nothing is closed under another thread's hands.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from enum import Enum
from functools import partial
from typing import Any, TypeAlias, TypeVar

from mirror.durable import FileExtent

SLICE_S = 0.2
_FILE_PIECE = 1 << 20

Piece: TypeAlias = bytes | memoryview | FileExtent
"""What a body is sent in."""

Result = TypeVar("Result")


class WireFault(Enum):
    """What the network did."""

    CONNECT = "no connection"
    CONNECT_LATE = "no connection in time"
    PROXY = "the proxy refused"
    INNER = "a host in a private network"
    READ_LATE = "nothing to read in time"
    WRITE_LATE = "nothing taken in time"
    BROKEN = "the connection broke"
    UNSENDABLE = "a request that HTTP does not allow"


class WireError(Exception):
    """The network failed on the way to `url`; the cause, if there is one, says more.

    `proxy` (`host:port`) is the one between that failed, if one did.
    """

    def __init__(self, fault: WireFault, text: str) -> None:
        super().__init__(text)
        self.fault = fault
        self.url: str | None = None
        self.proxy: str | None = None


@contextmanager
def blaming(proxy: str | None) -> Generator[None, None, None]:
    """What fails in the block is the fault of `proxy`, where there is one."""
    try:
        yield
    except WireError as err:
        err.proxy = proxy
        raise


class AnsweredError(Exception):
    """The other side has answered, though it was not sent everything yet."""


class Wait:
    """How long some operations may take together, and the faults to raise if they do not succeed.

    `check` is called at the beginning and in every slice. `heard` is asked while there is something
    to read, whatever is waited for; AnsweredError ends the wait where it says so.
    """

    __slots__ = ("broken", "check", "heard", "late", "until")

    def __init__(self, seconds: float, check: Callable[[], None]) -> None:
        self.check, self.late, self.broken = check, WireFault.CONNECT_LATE, WireFault.CONNECT
        self.heard: Callable[[], bool] | None = None
        self.until = time.monotonic() + seconds
        check()

    def left_s(self) -> float:
        """Seconds until it is over.

        Raises:
            WireError: it is over.
        """
        left_s = self.until - time.monotonic()
        if left_s <= 0:
            raise WireError(self.late, "timed out")
        return left_s

    def slice(self, sock: socket.socket, event: int) -> bool:
        """Wait for `event` of `select.poll`, for one slice; whether it came."""
        poll = select.poll()
        poll.register(sock, event if self.heard is None else event | select.POLLIN)
        found = poll.poll(min(self.left_s(), SLICE_S) * 1000)
        self.check()  # in any case: the other side may talk on and on
        if found and self.heard is not None and found[0][1] & select.POLLIN and self.heard():
            raise AnsweredError
        return bool(found)


class Stream:
    """A connected socket, in the clear or encrypted. One thread uses it at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.is_plain = type(sock) is socket.socket
        self._least = 1

    def receive(self, most: int, wait: Wait, *, least: int = 1) -> bytes:
        """What has arrived, `most` bytes at most; nothing at the end.

        Each system call hands the interpreter's lock over twice, so it is only made once `least`
        bytes have come, unless the line is too slow for that.
        """
        if least != self._least:
            self._expect(least)
        return self.attempt(partial(self._received, most), select.POLLIN, wait)

    def send(self, data: Piece, wait: Wait, seconds: float) -> None:
        """Send all of `data`; each piece may take so many seconds to get away."""
        rest = data if isinstance(data, FileExtent) else memoryview(data)
        while rest:
            wait.until = time.monotonic() + seconds
            if not isinstance(rest, FileExtent):
                sent = self.attempt(partial(self.sock.send, rest), select.POLLOUT, wait)
            elif not (sent := self.attempt(partial(self._sent_file, rest), select.POLLOUT, wait)):
                piece = next(rest.pieces(_FILE_PIECE))
                self.send(piece, wait, seconds)
                sent = len(piece)
            rest = rest[sent:]

    def _sent_file(self, extent: FileExtent) -> int:
        """The bytes that the system has sent out of a file; 0 where they have to be read first."""
        if not self.is_plain:
            return 0
        try:
            return os.sendfile(self.sock.fileno(), extent.fd, extent.offset, extent.size)
        except (BlockingIOError, ConnectionError, TimeoutError):
            raise
        except OSError:  # the file's fault, which reading puts into words; or the socket's
            return 0

    def arrived(self, most: int) -> bytes | None:
        """What has arrived by now, `most` bytes at most; nothing at the end. None: not a byte."""
        try:
            return self.sock.recv(most)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    @property
    def certificate_end(self) -> float | None:
        """When the other side's certificate ends, in seconds since 1970; None: unverified."""
        shown: Any = getattr(self.sock, "getpeercert", dict)()
        return ssl.cert_time_to_seconds(shown["notAfter"]) if shown else None

    def close(self) -> None:
        """End the connection."""
        self.sock.close()

    def interrupt(self) -> None:
        """Wake the thread that uses the connection, which finds it broken."""
        with suppress(OSError):  # the other side was faster
            # Not TLS's own, which would touch what that thread reads with.
            socket.socket.shutdown(getattr(self.sock, "outer", self.sock), socket.SHUT_RDWR)

    def is_stale(self) -> bool:
        """Whether a byte, or the end, waits to be read."""
        if self._least > 1:
            self._expect(1)  # else a poll overlooks fewer
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0) or getattr(self.sock, "pending", int)())  # TLS may hold some

    def _received(self, most: int) -> bytes:
        first = self.sock.recv(most)
        if self.is_plain or not first:
            return first
        # TLS hands out a record of 16 KiB at most. Take those that are here already; if there is
        # something else, such as a break, the next read meets it, and what came before counts.
        pieces, size = [first], len(first)
        with suppress(OSError):
            while size < most and (piece := self.sock.recv(most - size)):
                pieces.append(piece)
                size += len(piece)
        return b"".join(pieces)

    def _expect(self, least: int) -> None:
        self._least = least
        if self.is_plain:
            with suppress(OSError):  # a help, no more
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)

    def attempt(self, action: Callable[[], Result], event: int, wait: Wait) -> Result:
        """Try `action` until it need not wait any more; `event` is what it mostly waits for."""
        try:
            while True:
                awaited = event
                try:
                    return action()
                except ssl.SSLWantReadError:
                    awaited = select.POLLIN
                except ssl.SSLWantWriteError:
                    awaited = select.POLLOUT
                except BlockingIOError:
                    pass
                if not wait.slice(self.sock, awaited) and self._least > 1:
                    self._expect(1)
        except OSError as err:
            raise WireError(wait.broken, str(err)) from err
