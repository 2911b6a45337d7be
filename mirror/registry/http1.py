"""HTTP/1.1 on one connection (RFC 9112)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mirror.durable import FileExtent
from mirror.errors import printable
from mirror.registry.streams import AnsweredError, Piece, Stream, Wait, WireError, WireFault

_MAX_HEAD = 100 << 10
_MOST_INTERIM = 64
"""Of one request: a server that is at work says so (102) a few times a minute."""
_READ = 64 << 10
_PIECE = 1 << 20
_MAX_REASON = 300

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(r"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: .*)?")
_BEGINNING = re.compile(rb"HTTP/1\.[01] ([1-9])")
_FOLD = re.compile(r"\r?\n[ \t]+")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")


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


class Response:
    """An answer whose body is unread. To be closed; used by one thread.

    `url` is where it came from, and `authorization` what was shown there.
    """

    def __init__(
        self, connection: Connection, method: str, url: str, authorization: str | None
    ) -> None:
        self._connection: Connection | None = connection
        self.method, self.url, self.authorization = method, url, authorization
        self.status, self.headers, self._keeps = connection.head()
        pieces = self._framed(connection)
        self._pieces: Iterator[bytes] = pieces or iter(())
        if pieces is None:
            self._done(keep=self._keeps)

    def pieces(self) -> Iterator[bytes]:
        """The body as it arrives, in pieces that belong to the caller.

        Raises:
            WireError: the network failed.
        """
        try:
            yield from self._pieces
        except WireError as err:
            err.url = self.url
            raise
        self._done(keep=self._keeps)

    def close(self) -> None:
        """Let go of the connection. It serves again if the body was read to its end."""
        self._done(keep=False)

    def _done(self, *, keep: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:  # else it may serve another request by now
            connection.done(keep=keep)

    def _framed(self, connection: Connection) -> Iterator[bytes] | None:
        """How the body ends; None if there is none."""
        headers = self.headers
        if self.method == "HEAD" or self.status in (204, 304):
            return None
        if (coding := headers.get("transfer-encoding")) is not None:
            if coding.lower() != "chunked":
                raise WireError(WireFault.BROKEN, "an unknown transfer coding")
            if headers.pop("content-length", None) is not None:
                self._keeps = False  # one of the two is wrong
            return connection.chunks()
        if "content-length" in headers:
            if (length := headers.length) is None:
                raise WireError(WireFault.BROKEN, "an answer with a wrong Content-Length")
            return connection.counted(length) if length else None
        self._keeps = False
        return connection.rest()


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
        raw = data[: end.start()]
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        return _parsed(text)


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


def _parsed(text: str) -> tuple[int, str, list[tuple[str, str]]]:
    """The head of an answer: status, minor version, fields.

    Raises:
        WireError: that is not HTTP.
    """
    first, *lines = _FOLD.sub(" ", text).replace("\r\n", "\n").split("\n")
    status = _STATUS.fullmatch(first)
    fields = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or _NAME.fullmatch(name) is None or "\0" in value or "\r" in value:
            raise WireError(WireFault.BROKEN, "an answer that is not HTTP")
        fields.append((name.lower(), value.strip(" \t")))
    if status is None:
        raise WireError(WireFault.BROKEN, "an answer that is not HTTP")
    return int(status[2]), status[1], fields


def is_page(headers: Mapping[str, str], body: bytes = b"<") -> bool:
    """Whether an answer is a page for people. Some registries call what they answer HTML."""
    return "html" in headers.get("content-type", "").lower() and body.lstrip().startswith(b"<")


def clean(text: str) -> str:
    """Foreign text for a message: without control characters, and not long."""
    return printable(" ".join(text[: 2 * _MAX_REASON].split()))[:_MAX_REASON]
