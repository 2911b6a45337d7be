"""HTTP/1.1 on one connection (RFC 9112), whose waits end when the work that waits is stopped.

All sockets are non-blocking. A wait is a `poll` in slices, and between two slices `check` is asked,
which raises once there is no more reason to wait. So a cancelled run leaves a connection at any
point, the client stays open, and nothing is closed under another thread's hands.
"""

from __future__ import annotations

import os
import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TypeAlias, TypeVar

from mirror.durable import FileExtent

SLICE_S = 0.2
_FILE_PIECE = 1 << 20
_MAX_HEAD = 100 << 10
_MOST_INTERIM = 64
"""Of one request: a server that is at work says so (102) a few times a minute."""
_READ = 64 << 10
_PIECE = 1 << 20

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(r"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: .*)?")
_BEGINNING = re.compile(rb"HTTP/1\.[01] ([1-9])")
_FOLD = re.compile(r"\r?\n[ \t]+")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")

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
        """Seconds until it is over; raises WireError once it is."""
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


@dataclass(frozen=True, slots=True)
class Body:
    """What a request sends: `size` bytes that `opened` yields, anew for each attempt."""

    size: int
    opened: Callable[[], Iterable[Piece]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds: for a connection, for a byte to move, for an answer to begin.

    `check` raises once there is no more reason to.
    """

    connect_s: float
    stall_s: float
    answer_s: float
    check: Callable[[], None]


class Headers(dict[str, str]):
    """The fields of an answer by lower-case name; what is repeated is joined by commas."""

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        super().__init__()
        self._fields = list(fields)
        for name, value in self._fields:
            if name not in self:
                self[name] = value
            elif name != "content-length" or self[name] != value:  # may be said twice
                self[name] += f", {value}"

    @property
    def length(self) -> int | None:
        """Content-Length, in bytes; None where it is absent or no number."""
        text = self.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    def all(self, name: str) -> list[str]:
        """The values of `name`, in order."""
        return [value for other, value in self._fields if other == name]


class Connection:
    """One connection, in use for one request."""

    def __init__(self, stream: Stream, give_back: Callable[[Connection, bool], None]) -> None:
        self.stream, self._give_back = stream, give_back
        self.idle_since = 0.0
        self.is_answered = False  # not even in part
        self._buffer = b""
        self._patience: Patience
        self._wait: Wait
        self._is_broken = False

    def send(self, head: bytes, body: Body | None, patience: Patience) -> None:
        """Send a request. A server that will not take all of it may have answered already.

        It is listened to meanwhile: after a refusal the rest is not sent.
        """
        self._patience, self.is_answered = patience, False
        self._wait = Wait(patience.stall_s, patience.check)
        self._wait.late, self._wait.broken = WireFault.WRITE_LATE, WireFault.BROKEN
        pieces = iter(body.opened()) if body is not None else iter(())
        try:
            first: Piece = next(pieces, b"")
            # One system call, and one packet, for a small request.
            if len(first) <= _READ and not isinstance(first, FileExtent):
                head, first = head + first, b""
            self.stream.send(head, self._wait, patience.stall_s)
            self._wait.heard = self._is_refused
            self.stream.send(first, self._wait, patience.stall_s)
            sent = 0
            for piece in pieces:
                if (sent := sent + len(piece)) > _PIECE:
                    sent = 0
                    if self._is_refused():
                        raise AnsweredError
                self.stream.send(piece, self._wait, patience.stall_s)
        except AnsweredError:
            self._is_broken = True
        except WireError as err:
            if err.fault is not WireFault.BROKEN:
                raise  # else what is still there to be read, a TLS alert too, says why
            self._is_broken = True
        finally:
            self._wait.heard = None
            # A refused request leaves its body half read; whatever feeds it is to be let go.
            if isinstance(pieces, Generator):
                pieces.close()

    def _is_refused(self) -> bool:
        """Whether an answer has begun that makes the rest of the request useless."""
        try:
            data = self.stream.arrived(_READ)
        except OSError:
            return False  # sending meets it, too
        if data is None:
            return False
        self._buffer += data
        self.is_answered |= bool(data)
        if len(self._buffer) > _MAX_HEAD:
            return True  # of whatever; who reads the answer finds out
        return not data or _refuses(self._buffer)

    def head(self) -> tuple[int, Headers, bool]:
        """The status and the fields of the answer, and whether the connection may be kept."""
        wait = self._wait
        wait.until, wait.late = time.monotonic() + self._patience.answer_s, WireFault.READ_LATE
        for _ in range(_MOST_INTERIM + 1):
            status, version, fields = self._one_head()
            wait.check()
            wait.left_s()  # interim answers do not prolong it
            if status == 101:
                raise WireError(WireFault.BROKEN, "an answer in another protocol")
            if status >= 200:
                break
        else:
            raise WireError(WireFault.BROKEN, f"more than {_MOST_INTERIM} interim answers")
        headers = Headers(fields)
        closes = version == "0" or "close" in headers.get("connection", "").lower()
        return status, headers, not closes and not self._is_broken

    def counted(self, left: int) -> Generator[bytes, None, None]:
        """The next `left` bytes."""
        if left and self._buffer:
            piece, self._buffer = self._buffer[:left], self._buffer[left:]
            left -= len(piece)
            yield piece
        while left:
            most = min(left, _PIECE)
            piece = self._receive(most, least=most if most > _READ else 1)
            if not piece:
                raise WireError(WireFault.BROKEN, f"it ended {left} bytes before the answer did")
            left -= len(piece)
            yield piece

    def chunks(self) -> Generator[bytes, None, None]:
        """A body in chunks; the last one is empty."""
        while True:
            self._wait_anew()
            match = _SIZE.fullmatch(self._line())
            if match is None:
                raise WireError(WireFault.BROKEN, "an answer with a wrong chunk")
            if not (size := int(match[1], 16)):
                break
            yield from self.counted(size)
            self._wait_anew()
            if self._line():
                raise WireError(WireFault.BROKEN, "an answer with a wrong chunk")
        left = _MAX_HEAD
        while trailer := self._line():
            if (left := left - len(trailer)) < 0:
                raise WireError(WireFault.BROKEN, f"trailers of more than {_MAX_HEAD} bytes")

    def rest(self) -> Generator[bytes, None, None]:
        """All that comes until the other side closes."""
        piece, self._buffer = self._buffer, b""
        if piece:
            yield piece
        while piece := self._receive(_PIECE):
            yield piece

    def done(self, *, keep: bool) -> None:
        """The request is over."""
        self._give_back(self, keep and not self._buffer)

    def _wait_anew(self) -> None:
        self._wait.check()
        self._wait.until = time.monotonic() + self._patience.stall_s

    def _receive(self, most: int, *, least: int = 1) -> bytes:
        self._wait_anew()
        return self.stream.receive(most, self._wait, least=least)

    def _line(self) -> bytes:
        """The next line, without its end; it all has to come in the wait that has begun."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise WireError(WireFault.BROKEN, "an answer with a line without an end")
            if not (more := self.stream.receive(_READ, self._wait)):
                raise WireError(WireFault.BROKEN, "it ended before the answer did")
            self._buffer += more
        line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
        return line.removesuffix(b"\r")

    def _one_head(self) -> tuple[int, str, list[tuple[str, str]]]:
        data, self._buffer = self._buffer, b""
        while (end := _HEAD_END.search(data)) is None:
            if len(data) > _MAX_HEAD:
                raise WireError(WireFault.BROKEN, f"a head of more than {_MAX_HEAD} bytes")
            if not (more := self.stream.receive(_READ, self._wait)):
                raise WireError(WireFault.BROKEN, "it ended without an answer")
            self.is_answered = True
            data += more
        self._buffer = data[end.end() :]
        return _parsed(data[: end.start()])


def _refuses(data: bytes) -> bool:
    """Whether the beginning of an answer is one of another status than success."""
    while found := _BEGINNING.match(data):
        if found[1] != b"1":
            return found[1] != b"2"
        end = _HEAD_END.search(data)
        if end is None:
            return False
        data = data[end.end() :]  # behind an interim answer
    return False


def _parsed(raw: bytes) -> tuple[int, str, list[tuple[str, str]]]:
    """The head of an answer (status, minor version, fields), or WireError if it is not HTTP."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    first, *lines = _FOLD.sub(" ", text).replace("\r\n", "\n").split("\n")
    status, fields = _STATUS.fullmatch(first), []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or _NAME.fullmatch(name) is None or "\0" in value or "\r" in value:
            status = None
        fields.append((name.lower(), value.strip(" \t")))
    if status is None:
        raise WireError(WireFault.BROKEN, "an answer that is not HTTP")
    return int(status[2]), status[1], fields
