"""A refusal that comes while a request is still being sent is heard at once."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress

import pytest

from mirror.errors import DeniedError, RegistryError
from mirror.oci import Digest
from mirror.registry import RegistryClient
from tests.registry.conftest import MakeClient
from tests.support.patience import PATIENCE_S, ends_within
from tests.support.tls import Authority, served_with

SIZE = 64 << 20
PIECE = bytes(1 << 20)
DIGEST = Digest.of(b"never asked for")
Secured = ssl.SSLContext | None


def content(offset: int) -> Generator[bytes, None, None]:
    for _ in range(offset, SIZE, len(PIECE)):
        yield PIECE


def _head(connection: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if not (byte := connection.recv(1)):
            raise OSError("gone")
        head += byte
    return head


@contextmanager
def server(context: Secured, answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A registry that opens uploads, and lets `answer` deal with what is sent into them."""
    over = threading.Event()

    def serve(accepted: socket.socket) -> None:
        with suppress(OSError):
            wrapped = context.wrap_socket(accepted, server_side=True) if context else accepted
            with wrapped as connection:
                while True:
                    method = _head(connection).split()[0]
                    if method == b"POST":
                        place = b"Location: /v2/a/blobs/uploads/1\r\nContent-Length: 0\r\n\r\n"
                        connection.sendall(b"HTTP/1.1 202 Accepted\r\n" + place)
                    elif method in (b"PUT", b"PATCH"):
                        answer(connection)
                        over.wait(PATIENCE_S)  # the connection stays, and takes nothing
                        return  # what is left of the body is no head of a request
                    else:
                        connection.sendall(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    one = threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True)
                    one.start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        over.set()
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture(params=["http", "https"])
def secured(request: pytest.FixtureRequest, authority: Authority) -> Secured:
    """What the server speaks TLS with, if it does."""
    if request.param == "http":
        return None
    files = authority.issue("registry", ("127.0.0.1",))
    return served_with(files)


def client_of(host: str, secured: Secured, make_client: MakeClient) -> RegistryClient:
    return make_client(host, plain_http=secured is None, verify=False, attempts=1)


@pytest.mark.parametrize("status", [401, 403, 413, 507])
def test_a_refusal_by_a_server_that_takes_no_more_is_heard(
    status: int, secured: Secured, make_client: MakeClient
) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)

    kind = DeniedError if status in (401, 403) else RegistryError
    with server(secured, refuse) as host, ends_within(20), pytest.raises(kind) as caught:
        client_of(host, secured, make_client).upload("a", DIGEST, SIZE, content)
    assert caught.value.status == status


def test_a_refusal_is_heard_in_the_midst_of_a_chunk(
    secured: Secured, make_client: MakeClient
) -> None:
    def refuse(connection: socket.socket) -> None:
        left = 3 << 20
        while left > 0:
            left -= len(connection.recv(1 << 16))
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 No\r\n")
        time.sleep(0.05)
        connection.sendall(b"Content-Length: 0\r\n\r\n")

    with server(secured, refuse) as host, ends_within(20), pytest.raises(DeniedError):
        client_of(host, secured, make_client).upload("a", DIGEST, SIZE, content)


def test_an_interim_answer_and_an_early_success_stop_nothing(
    secured: Secured, make_client: MakeClient
) -> None:
    received: list[int] = []

    def accept(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 201 Created\r\n")
        left = 8 << 20
        while left > 0:
            left -= len(connection.recv(1 << 16))
        received.append(left)
        connection.sendall(b"Content-Length: 0\r\n\r\n")

    def eight(offset: int) -> Generator[bytes, None, None]:
        yield from [PIECE] * 8

    with server(secured, accept) as host:
        client = client_of(host, secured, make_client)
        assert client.upload("a", DIGEST, 8 << 20, eight) == 8 << 20
    assert received == [0]
