"""Answers are read as HTTP/1.1 has them, however they come apart, and strictly."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.registry.answers import Response
from mirror.registry.connections import head_of as head
from mirror.registry.http1 import (
    Body,
    Connection,
    Patience,
    Piece,
    Stream,
    Wait,
    WireError,
    WireFault,
)

PATIENCE = Patience(5.0, 5.0, 5.0, lambda: None)


class Line:
    """A connection whose other end a test holds; `kept` is what became of it."""

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        ours.setblocking(False)
        self.theirs = theirs
        self.kept: list[bool] = []
        self.connection = Connection(Stream(ours), lambda _one, keep: self.kept.append(keep))

    def ask(self, answer: bytes, method: str = "GET", *, ends: bool = True) -> Response:
        """Send a request, to which the other side has this answer ready."""
        self.theirs.sendall(answer)
        if ends:
            self.theirs.shutdown(socket.SHUT_WR)
        self.connection.send(head(method, "/v2/", "host", {}), None, PATIENCE)
        return Response(self.connection, method, "http://host/v2/", None)


@contextmanager
def line() -> Iterator[Line]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Line(ours, theirs)


@pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints"])
def test_a_few_interim_answers_are_passed_over_and_a_flood_breaks_the_connection(
    status: str,
) -> None:
    interim, final = f"HTTP/1.1 {status}\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    assert body((interim * 64 + final).encode()) == b"ok"
    with pytest.raises(WireError, match="more than 64 interim answers") as told:
        body((interim * 65 + final).encode())
    assert told.value.fault is WireFault.BROKEN


def body(answer: bytes, method: str = "GET") -> bytes:
    with line() as end:
        return b"".join(end.ask(answer, method).pieces())


def as_h11_reads(answer: bytes, method: str) -> tuple[int, dict[str, str], bytes] | None:
    """The same by another implementation; None where that is no answer."""
    other = h11.Connection(h11.CLIENT, max_incomplete_event_size=100 << 10)
    other.send(h11.Request(method=method, target="/v2/", headers=[("Host", "host")]))
    other.send(h11.EndOfMessage())
    status, headers, content = 0, dict[str, str](), b""
    try:
        other.receive_data(answer)
        other.receive_data(b"")
        while True:
            match other.next_event():
                case h11.Response() as got:
                    status = got.status_code
                    for name, value in got.headers:
                        key, text = name.decode(), value.decode("latin-1")
                        headers[key] = f"{headers[key]}, {text}" if key in headers else text
                case h11.Data() as got:
                    content += got.data
                case h11.EndOfMessage():
                    return status, headers, content
                case h11.InformationalResponse():
                    pass
                case _:
                    return None
    except h11.RemoteProtocolError:
        return None


def test_lines_may_end_without_a_carriage_return() -> None:
    """Docker Hub's limiter of requests writes them so."""
    limited = (
        b"HTTP/1.1 429 Too Many Requests\nCache-Control: no-cache\nConnection: close\n"
        b"Content-Type: text/plain\nRetry-After: 60\n\nToo Many Requests (HAP429).\n\n"
    )
    with line() as end:
        answer = end.ask(limited)
        assert (answer.status, answer.headers.get("retry-after")) == (429, "60")
        assert b"".join(answer.pieces()).strip() == b"Too Many Requests (HAP429)."


TEXT = st.text('abcXYZ019 -;,=/"', max_size=12)
NAMES = st.sampled_from(["ETag", "Link", "X-a", "Docker-Content-Digest", "Location"])
PARTS = st.lists(st.binary(min_size=1, max_size=40), max_size=4)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """A proper answer, in one of the three ways to say where it ends."""
    lines = ["HTTP/1.1 200 OK"]
    lines += [f"{name}: {value}" for name, value in draw(st.lists(st.tuples(NAMES, TEXT)))]
    parts = draw(PARTS)
    content = b"".join(parts)
    match draw(st.sampled_from(["length", "chunked", "close"])):
        case "length":
            lines.append(f"Content-Length: {len(content)}")
        case "chunked":
            lines.append("Transfer-Encoding: chunked")
            content = b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in parts)
            content += b"0\r\nX-Trailer: 1\r\n\r\n"
    interim = "HTTP/1.1 100 Continue\r\n\r\n" * draw(st.integers(0, 2))
    return interim.encode() + "\r\n".join([*lines, "", ""]).encode() + content


@given(answer=answers(), method=st.sampled_from(["GET", "HEAD"]))
def test_a_proper_answer_is_read_as_another_reader_reads_it(answer: bytes, method: str) -> None:
    with line() as end:
        got = end.ask(answer, method)
        content = b"".join(got.pieces())
    assert (got.status, dict(got.headers), content) == as_h11_reads(answer, method)


@given(answer=answers(), data=st.data())
def test_damage_is_an_error_or_what_another_reader_reads(
    answer: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(answer) - 1))
    damaged = answer[:at] + data.draw(st.binary(max_size=3)) + answer[at + 1 :]
    other = as_h11_reads(damaged, "GET")
    faults, content = list[WireFault](), b""
    try:
        content = body(damaged)
    except WireError as err:
        faults.append(err.fault)
    assert faults == [WireFault.BROKEN] or (not faults and (other is None or other[2] == content))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: x\0y\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * (200 << 10),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        + (b"X: " + b"y" * 1000 + b"\r\n") * 110
        + b"\r\n",
    ],
)
def test_what_is_no_answer_is_a_broken_connection(answer: bytes) -> None:
    with pytest.raises(WireError) as caught:
        body(answer)
    assert caught.value.fault is WireFault.BROKEN


def test_a_line_without_an_end_is_given_up() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with pytest.raises(WireError, match="a line without an end"):
        body(chunked + b"0" * (150 << 10))


def test_a_field_may_be_folded_and_repeated() -> None:
    with line() as end:
        got = end.ask(b"HTTP/1.1 204 No\r\nLink: a\r\nLink: b,\r\n  c\r\n\r\n")
    assert got.headers == {"link": "a, b, c"}
    assert got.headers.all("link") == ["a", "b, c"]


@pytest.mark.parametrize(
    ("answer", "method", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "GET", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "HEAD", True),
        (b"HTTP/1.1 304 No\r\nContent-Length: 3\r\n\r\n", "GET", True),
        (b"HTTP/1.1 204 No\r\n\r\n", "GET", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", "GET", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "GET", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "GET", False),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET",
            False,
        ),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "GET", False),
        (b"HTTP/1.1 200 OK\r\n\r\nabc", "GET", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc", "GET", False),
    ],
)
def test_a_connection_is_kept_if_nothing_speaks_against_it(
    answer: bytes, method: str, kept: bool
) -> None:
    with line() as end:
        response = end.ask(answer, method)
        list(response.pieces())
        response.close()
        assert end.kept == [kept]


def test_an_answer_that_is_closed_late_leaves_the_next_one_its_connection() -> None:
    with line() as end:
        first = end.ask(b"HTTP/1.1 204 No\r\n\r\n", ends=False)
        second = end.ask(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
        first.close()
        assert end.kept == [True]
        assert b"".join(second.pieces()) == b"abc"
        assert end.kept == [True, True]


def test_a_connection_whose_answer_was_not_read_is_not_kept() -> None:
    with line() as end:
        end.ask(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc").close()
        assert end.kept == [False]


def test_an_early_answer_to_a_body_that_is_not_taken_is_heard() -> None:
    with line() as end:
        end.theirs.sendall(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
        end.theirs.shutdown(socket.SHUT_RD)
        content = Body(1 << 24, lambda: (bytes(1 << 20) for _ in range(16)))
        end.connection.send(head("PUT", "/", "host", {}), content, PATIENCE)
        assert Response(end.connection, "PUT", "http://host/", None).status == 413
        assert end.kept == [False]


@pytest.mark.parametrize("value", ["a\r\nEvil: 1", "a\nb", "a\rb", "a\0b", "ü"])
def test_a_field_cannot_carry_another(value: str) -> None:
    with pytest.raises(WireError) as caught:
        head("GET", "/", "host", {"Authorization": value})
    assert caught.value.fault is WireFault.UNSENDABLE
    assert value not in str(caught.value)


@given(st.text(max_size=30))
def test_a_target_is_one_word(path: str) -> None:
    first = head("GET", f"/{path}", "host", {}).partition(b"\r\n")[0]
    assert first.count(b" ") == 2


class _Endless(Stream):
    """A connection whose head never ends."""

    def __init__(self) -> None:
        self.given = 0

    def receive(self, most: int, wait: Wait, *, least: int = 1) -> bytes:
        assert self.given < 4 << 20, "it reads on and on"
        self.given += len(piece := b"X-Field: value\r\n" * 500)
        return piece

    def send(self, data: Piece, wait: Wait, seconds: float) -> None:
        pass


def test_a_head_that_never_ends_is_given_up() -> None:
    connection = Connection(_Endless(), lambda _connection, _keep: None)
    connection.send(b"", None, Patience(9, 9, 9, lambda: None))
    with pytest.raises(WireError, match="a head of more than 102400 bytes"):
        connection.head()


class _StoppedError(Exception):
    pass


def test_a_run_that_stops_is_heard_while_the_other_side_talks_and_takes_nothing() -> None:
    asked = itertools.count()

    def check() -> None:
        if next(asked) > 3:
            raise _StoppedError

    with line() as end:
        end.theirs.sendall(b"HTTP/1.1 200 OK\r\nX: ")

        class Talker(Stream):
            def arrived(self, most: int) -> bytes | None:
                end.theirs.sendall(b"a")
                return super().arrived(most)

        end.connection.stream.__class__ = Talker
        content = Body(1 << 24, lambda: iter([bytes(1 << 24)]))
        with pytest.raises(_StoppedError):
            end.connection.send(head("PUT", "/", "host", {}), content, Patience(5, 5, 5, check))


@pytest.mark.parametrize("beginning", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 100 Go on\r\nX: "])
def test_a_head_that_never_ends_is_given_up_while_the_request_is_sent(beginning: bytes) -> None:
    heard = 0

    class Talker(Stream):
        def arrived(self, most: int) -> bytes | None:
            nonlocal heard
            assert heard < 4 << 20, "it reads on and on"
            piece = bytes(1 << 10).replace(b"\0", b"a") if heard else beginning
            heard += len(piece)
            return piece

    with line() as end:
        end.theirs.sendall(b"x")
        end.connection.stream.__class__ = Talker
        content = Body(1 << 24, lambda: iter([bytes(1 << 24)]))
        end.connection.send(head("PUT", "/", "host", {}), content, PATIENCE)
        with pytest.raises(WireError, match="a head of more than 102400 bytes"):
            end.connection.head()
    assert heard < 110 << 10
