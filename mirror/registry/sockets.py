"""Sockets whose every wait listens to the work that waits.

httpcore takes a network backend and hands each of its operations the time-out that the request
came with. Ours is a `Patience`: a number of seconds that also knows when to stop. All sockets are
non-blocking; a wait is a `poll` in slices, and between two slices the patience is asked. So a
cancelled run leaves a connection at any point, the client stays open, and nothing is closed under
another thread's hands.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias, TypeVar

import httpcore

_SLICE_S = 0.2
_FIRST_READ = 64 << 10
_MOST_READ = 1 << 20
"""Bytes asked for at once. Each system call hands the interpreter's lock over twice, so a line that
fills its buffer is read in large pieces."""

_SLOW_PIECE_S = 1.0
_MIN_PIECE = 16 << 10
_MAX_PIECE = 256 << 10

Result = TypeVar("Result")
Address: TypeAlias = tuple[Any, ...]


class Patience(float):
    """Seconds to wait, and `check`, which raises once there is no more reason to.

    `until` (`time.monotonic`) bounds several waits together, such as those for the head of an
    answer: a server that sends a byte at a time renews every time-out and never this one.
    """

    check: Callable[[], None]
    until: float | None

    @classmethod
    def of(cls, seconds: float, check: Callable[[], None]) -> Patience:
        """A patience of `seconds`."""
        patience = cls(seconds)
        patience.check, patience.until = check, None
        return patience


def _nothing() -> None:
    pass


def bound_head(read: Patience) -> Callable[[str, Mapping[str, Any]], None]:
    """A `trace` extension that makes `read` hold for a whole head, interim answers included."""

    def trace(step: str, _about: Mapping[str, Any]) -> None:
        if step == "http11.receive_response_headers.started":
            read.until = time.monotonic() + read
        elif step.startswith("http11.receive_response_headers"):
            read.until = None

    return trace


class _Wait:
    """One operation's waiting: how long at most, and what to raise then."""

    def __init__(self, timeout: float | None, late: type[Exception]) -> None:
        seconds = 3600.0 if timeout is None else float(timeout)
        known = timeout if isinstance(timeout, Patience) else None
        self.check = known.check if known is not None else _nothing
        self._until = time.monotonic() + seconds
        self.for_head = known is not None and known.until is not None
        if known is not None and known.until is not None:
            self._until = min(self._until, known.until)
        self._late = late
        self.check()
        self.left_s()

    def left_s(self) -> float:
        """Seconds until it is over; raises at its end."""
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise self._late("timed out")
        return left_s

    def ready(self, sock: socket.socket, event: int) -> None:
        """Return once `sock` can be read from, or written to (`event` of `select.poll`)."""
        poll = select.poll()
        poll.register(sock, event)
        while not poll.poll(min(self.left_s(), _SLICE_S) * 1000):
            self.check()


class Stream(httpcore.NetworkStream):
    """A connection. One thread uses it at a time; any thread may close it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._size = _FIRST_READ
        self._lock = threading.Lock()  # guards the next two
        self._busy = False
        self._closed = False

    def read(
        self,
        max_bytes: int,  # noqa: ARG002 (httpcore takes more, too)
        timeout: float | None = None,
    ) -> bytes:
        """What has arrived, at least a byte; nothing at the end. May be more than `max_bytes`."""
        wait = _Wait(timeout, httpcore.ReadTimeout)
        # Who sends interim answers for ever is looked at after few of them.
        most = _FIRST_READ if wait.for_head else self._size
        data = self._do(partial(self._received, most), select.POLLIN, wait, httpcore.ReadError)
        if len(data) >= self._size:
            self._size = min(2 * self._size, _MOST_READ)
        return data

    def _received(self, most: int) -> bytes:
        first = self._sock.recv(most)
        if not first or not isinstance(self._sock, ssl.SSLSocket):
            return first
        # TLS hands out a record of 16 KiB at most. Take those that are here already; if there is
        # something else, such as a break, the next read meets it, and what came before counts.
        pieces, size = [first], len(first)
        with suppress(OSError):
            while size < most and (piece := self._sock.recv(most - size)):
                pieces.append(piece)
                size += len(piece)
        return b"".join(pieces)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of `buffer`; the time-out is for each piece of it that gets away."""
        view = memoryview(buffer)
        while view:
            wait = _Wait(timeout, httpcore.WriteTimeout)
            send = partial(self._sock.send, view)
            sent = self._do(send, select.POLLOUT, wait, httpcore.WriteError)
            view = view[sent:]

    def close(self) -> None:
        """End the connection. A thread that waits on it wakes up, and closes what it uses."""
        with self._lock:
            self._closed = True
            if self._busy:
                with suppress(OSError):  # the other side was faster
                    # Not TLS's own, which would touch what that thread reads with.
                    socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
                return
        self._sock.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """The same connection, encrypted; this object is not to be used any more."""
        wait = _Wait(timeout, httpcore.ConnectTimeout)
        try:
            if isinstance(self._sock, ssl.SSLSocket):
                return _Tunnel(self, ssl_context, server_hostname, timeout)
            sock = ssl_context.wrap_socket(
                self._sock, server_hostname=server_hostname, do_handshake_on_connect=False
            )
            stream = Stream(sock)
            self._sock = sock  # for `close` below
            stream._do(sock.do_handshake, select.POLLIN, wait, httpcore.ConnectError)
        except (OSError, ValueError) as err:  # ValueError: a name that no certificate can have
            self.close()
            raise httpcore.ConnectError(str(err)) from err
        except BaseException:
            self.close()
            raise
        return stream

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks for: whether a byte, or the end, waits to be read."""
        if info == "is_readable":
            if self._closed:
                return True
            poll = select.poll()
            with suppress(ValueError):  # closed at this moment
                poll.register(self._sock, select.POLLIN)
                return bool(poll.poll(0))
            return True
        return None

    def _do(
        self, action: Callable[[], Result], event: int, wait: _Wait, broken: type[Exception]
    ) -> Result:
        """Try `action` until it need not wait any more; `event` is what it mostly waits for."""
        with self._lock:
            if self._closed:
                raise broken("the connection was closed")
            self._busy = True
        try:
            while True:
                try:
                    return action()
                except ssl.SSLWantReadError:
                    wait.ready(self._sock, select.POLLIN)
                except ssl.SSLWantWriteError:
                    wait.ready(self._sock, select.POLLOUT)
                except BlockingIOError:
                    wait.ready(self._sock, event)
        except OSError as err:
            raise broken(str(err)) from err
        finally:
            with self._lock:
                self._busy = False
                if self._closed:
                    self._sock.close()


class _Tunnel(httpcore.NetworkStream):
    """TLS inside of TLS: to a registry through a proxy that is itself reached by TLS."""

    def __init__(
        self,
        outer: Stream,
        context: ssl.SSLContext,
        server_hostname: str | None,
        timeout: float | None,
    ) -> None:
        self._outer = outer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=server_hostname
        )
        self._do(self._tls.do_handshake, timeout, httpcore.ConnectError)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._do(lambda: self._tls.read(max_bytes), timeout, httpcore.ReadError)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        while view:
            sent = self._do(partial(self._tls.write, view), timeout, httpcore.WriteError)
            view = view[sent:]

    def close(self) -> None:
        """End the connection."""
        self._outer.close()

    def get_extra_info(self, info: str) -> Any:
        return self._outer.get_extra_info(info)

    def _do(
        self, action: Callable[[], Result], timeout: float | None, broken: type[Exception]
    ) -> Result:
        while True:
            result: list[Result] = []
            try:
                result.append(action())
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as err:
                raise broken(str(err)) from err
            if waiting := self._outgoing.read():
                self._outer.write(waiting, timeout)
            if result:
                return result[0]
            if received := self._outer.read(_FIRST_READ, timeout):
                self._incoming.write(received)
            else:
                self._incoming.write_eof()


class Backend(httpcore.NetworkBackend):
    """Opens connections, one address of a name after the other."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002 (we never ask for one)
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 (likewise)
    ) -> httpcore.NetworkStream:
        """Connect to `host`. The time-out is for resolving it and for all of its addresses.

        Raises:
            httpcore.ConnectTimeout, httpcore.ConnectError: with the reason as its cause.
        """
        wait = _Wait(timeout, httpcore.ConnectTimeout)
        try:
            addresses = _resolved(host, port, wait)
            failure: Exception = OSError("the name has no address")
            for rest, (family, address) in zip(
                range(len(addresses), 0, -1), addresses, strict=True
            ):
                try:
                    return Stream(_connected(family, address, wait, share=rest))
                except (OSError, httpcore.ConnectTimeout) as err:
                    failure = err
            raise failure
        except (OSError, ValueError, OverflowError) as err:  # names and ports that cannot be
            raise httpcore.ConnectError(str(err)) from err


def _resolved(host: str, port: int, wait: _Wait) -> list[tuple[int, Address]]:
    """The addresses of `host`, in the resolver's order.

    The system's resolver cannot be interrupted, so a thread of its own waits for it. When nobody
    wants the answer any more that thread stays until the resolver gives up.
    """
    answers: list[list[tuple[int, Address]]] = []
    failures: list[BaseException] = []
    over = threading.Event()

    def resolve() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.append([(family, address) for family, _, _, _, address in found])
        except BaseException as err:  # noqa: BLE001 (raised below, by the thread that asked)
            failures.append(err)
        finally:
            over.set()

    threading.Thread(target=resolve, name=f"resolve-{host[:40]}", daemon=True).start()
    while not over.wait(min(wait.left_s(), _SLICE_S)):
        wait.check()
    if failures:
        raise failures[0]
    return answers[0]


def _connected(family: int, address: Address, wait: _Wait, *, share: int) -> socket.socket:
    """A socket that is connected to `address`, within a `share`-th of the time that is left."""
    own = _Wait(Patience.of(wait.left_s() / share, wait.check), httpcore.ConnectTimeout)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(BlockingIOError):
            sock.connect(address)
        own.ready(sock, select.POLLOUT)
        if failed := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(failed, os.strerror(failed))
    except BaseException:
        sock.close()
        raise
    return sock


class StallWatch:
    """Judges one direction of one transfer in windows of `window_s` seconds spent waiting.

    Only the time that the network takes counts: a slow disk on our side is no stall. Sockets have
    time-outs of their own for moving nothing at all; this catches the connection that trickles.
    `spend` hears of all bytes and may wait, for a rate to be kept.
    """

    def __init__(
        self,
        window_s: float,
        min_bytes: int,
        error: Callable[[], Exception],
        clock: Callable[[], float] = time.monotonic,
        spend: Callable[[int], None] | None = None,
    ) -> None:
        self._spend = spend
        self._window_s, self._min_bytes = window_s, min_bytes
        self._error, self._clock = error, clock
        self._waited_s, self._moved = 0.0, 0

    def _note(self, count: int, waited_s: float) -> None:
        self._moved += count
        self._waited_s += waited_s
        if self._waited_s >= self._window_s:
            if self._moved < self._min_bytes:
                raise self._error()
            self._waited_s, self._moved = 0.0, 0

    def received(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass on what arrives; raise the error once it has stalled."""
        iterator = iter(chunks)
        while True:
            began = self._clock()
            chunk = next(iterator, None)
            if chunk is None:
                return
            self._note(len(chunk), self._clock() - began)
            if self._spend is not None:
                self._spend(len(chunk))
            yield chunk

    def sent(self, chunks: Iterable[bytes]) -> Iterator[memoryview]:
        """Hand out `chunks` in pieces; raise the error once their receiver has stalled.

        A piece counts when the next is asked for. Pieces shrink when the line is slow, so that
        this is soon enough to tell, and grow when it is fast, so that it costs nothing.
        """
        size = _MIN_PIECE
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                piece, view = view[:size], view[size:]
                began = self._clock()
                yield piece
                waited_s = self._clock() - began
                self._note(len(piece), waited_s)
                if self._spend is not None:
                    self._spend(len(piece))
                size = _MIN_PIECE if waited_s > _SLOW_PIECE_S else min(size * 2, _MAX_PIECE)
