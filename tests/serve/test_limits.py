"""What clients that never finish what they begin may take of a server."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from mirror.serve import FolderStorage, MemoryStorage, Store, create_app, put_blob
from mirror.serve.server import ServerLimits, ServerThread, listen
from tests.support.patience import wait_until
from tests.support.sample_images import fill

LONG = 60.0
"""Seconds that no test waits for."""
HALF = 0.5
SOON = 0.2

Speak = Callable[..., socket.socket]


@contextmanager
def served(limits: ServerLimits, storage: Store | None = None) -> Iterator[tuple[int, Speak]]:
    """A registry with `limits`: its port, and a way to connect to it and send some bytes."""
    if storage is None:
        storage = MemoryStorage()
        fill(storage)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = ServerThread(create_app(storage), listener, limits=limits)
    server.start()
    opened: list[socket.socket] = []

    def speak(*pieces: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", port), timeout=LONG)
        opened.append(connection)
        for piece in pieces:
            connection.sendall(piece)
        return connection

    try:
        yield port, speak
    finally:
        for connection in opened:
            connection.close()
        server.stop()


def ended(connection: socket.socket) -> bytes:
    """What still comes until the server ends the connection."""
    received = b""
    try:
        while piece := connection.recv(1 << 16):
            received += piece
    except ConnectionResetError:
        pass
    return received


def answer(connection: socket.socket) -> bytes:
    """The answer to `GOOD`."""
    received = b""
    while not received.endswith(b"{}"):
        received += connection.recv(1 << 16)
    return received


def begin_a_body(speak: Speak) -> socket.socket:
    """A request whose head the server has read, and of whose 8 bytes it waits for the first."""
    head = b"PUT /v2/a/manifests/b HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n"
    connection = speak(head + b"Expect: 100-continue\r\n\r\n")
    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 100")
    return connection


def sent_until_refused(connection: socket.socket, piece: bytes, most: int = 1000) -> int:
    """How often `piece` could be sent."""
    for count in range(most):
        try:
            connection.sendall(piece)
        except OSError:
            return count
    return most


HEAD = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n"
GOOD = HEAD + b"\r\n"


@pytest.mark.parametrize(
    "begun",
    [b"", b"\r\n", b"GET", HEAD, HEAD + b"X: ", b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\n"],
)
def test_a_request_that_is_not_asked_in_time_is_not_waited_for(begun: bytes) -> None:
    with served(ServerLimits(head_s=SOON)) as (_, speak):
        assert ended(speak(begun)) == b""


def test_a_head_that_drips_has_no_more_time_than_another() -> None:
    with served(ServerLimits(head_s=SOON)) as (_, speak):
        connection = speak(HEAD)
        began = time.monotonic()
        while time.monotonic() < began + LONG:
            try:
                connection.sendall(b"X-A: b\r\n")
                connection.settimeout(0.01)
                if not connection.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() < began + LONG


def test_the_next_request_of_a_connection_has_its_own_time() -> None:
    with served(ServerLimits(head_s=HALF)) as (_, speak):
        connection = speak(GOOD)
        assert answer(connection).startswith(b"HTTP/1.1 200")
        time.sleep(2 * HALF)  # whoever has been answered may be silent
        connection.sendall(GOOD)
        assert answer(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET")
        assert ended(connection) == b""


@pytest.mark.parametrize(
    "begun",
    [
        b"PUT /v2/a/manifests/b HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\na",
        b"PUT /v2/a/manifests/b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n9\r\na",
    ],
)
def test_a_body_that_stops_is_not_waited_for(begun: bytes) -> None:
    with served(ServerLimits(silence_s=SOON)) as (_, speak):
        ended(speak(begun))


def test_a_body_may_be_slow() -> None:
    with served(ServerLimits(head_s=HALF)) as (_, speak):
        connection = begin_a_body(speak)
        for _ in range(8):
            time.sleep(HALF / 4)
            connection.sendall(b"x")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400")


def test_a_long_head_is_refused_wherever_it_is_long() -> None:
    limits = ServerLimits(head_bytes=4096)
    long = b"a" * 5000
    with served(limits) as (_, speak):
        for head in (
            b"GET /v2/" + long + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            HEAD + b"X: " + long + b"\r\n\r\n",
            HEAD + long + b": x\r\n\r\n",
            HEAD + b"X: y\r\n" * 2000 + b"\r\n",
            HEAD + b"X: " + long,
        ):
            refusal = ended(speak(head))
            assert refusal.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
            assert b"Connection: close" in refusal
        for begun in (b"GET /", HEAD, HEAD + b"X: "):
            assert sent_until_refused(speak(begun), long) < 1000
        assert speak(HEAD + b"X: " + b"a" * 3500 + b"\r\n\r\n").recv(99).startswith(b"HTTP/1.1 200")


def test_trailers_and_what_comes_with_chunks_have_the_same_limit() -> None:
    begun = b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with served(ServerLimits(head_bytes=4096)) as (_, speak):
        for rest in (b"0\r\nX: ", b"0\r\n", b"1;"):
            assert sent_until_refused(speak(begun + rest), b"a" * 5000) < 1000


def test_whoever_asks_nothing_makes_room_for_whoever_asks() -> None:
    with served(ServerLimits(connections=3)) as (port, speak):
        asking = speak(GOOD)
        assert asking.recv(1 << 16).startswith(b"HTTP/1.1 200")
        silent = [speak() for _ in range(10)]
        assert httpx.get(f"http://127.0.0.1:{port}/v2/").status_code == 200
        for connection in silent[:-2]:
            assert ended(connection) == b""


def test_a_server_in_which_all_ask_takes_nobody_more() -> None:
    with served(ServerLimits(connections=2)) as (port, speak):
        asking = [begin_a_body(speak), begin_a_body(speak)]
        with closing(socket.create_connection(("127.0.0.1", port), timeout=LONG)) as late:
            assert ended(late) == b""
        for connection in asking:
            connection.sendall(b"12345678")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_client_that_reads_no_answer_does_not_keep_others_out(
    tmp_path: Path, on_disk: bool
) -> None:
    storage: Store = FolderStorage(tmp_path) if on_disk else MemoryStorage()
    blob = put_blob(storage, "a", bytes(32 << 20))
    with served(ServerLimits(silence_s=SOON, connections=1), storage) as (port, speak):
        speak(f"GET /v2/a/blobs/{blob} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

        def answered() -> bool:
            with suppress(httpx.TransportError):
                return httpx.get(f"http://127.0.0.1:{port}/v2/", timeout=LONG).is_success
            return False

        wait_until(answered)
