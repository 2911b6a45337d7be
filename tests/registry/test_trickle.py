"""A server that says too little for too long is left, whatever part of an answer it is at."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

import pytest

from mirror.errors import DeniedError, StalledError
from mirror.oci import Digest
from mirror.registry import Credentials, RegistryClient
from tests.registry.conftest import MakeClient

LIMIT_S = 0.5
QUICKLY_S = 10.0
"""Much longer than the limit, for machines that do other things too, and much shorter than what the
servers here do for."""
Talk: TypeAlias = Callable[[socket.socket, bytes], None]
"""What a server does with a connection, of whose first request it has read the head."""


@contextmanager
def raw_server(talk: Talk) -> Iterator[str]:
    """A server of bare sockets; its host. Whatever it is at ends when the client hangs up."""

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    if not (received := connection.recv(1)):
                        return
                    head += received
                talk(connection, head)
            except OSError:
                pass  # the client has had enough

    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        stack.callback(listener.shutdown, socket.SHUT_RDWR)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def trickle(connection: socket.socket, text: bytes) -> None:
    """Send a byte every twentieth of a second."""
    for byte in text:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def a_slow_head(connection: socket.socket, _head: bytes) -> None:
    trickle(connection, b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 4000)


def interim_answers_for_ever(connection: socket.socket, _head: bytes) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.05)


def a_slow_error(connection: socket.socket, _head: bytes) -> None:
    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4000\r\n\r\n")
    trickle(connection, b"x" * 4000)


def quickly(client: RegistryClient, ask: Callable[[RegistryClient], object]) -> None:
    """Expect StalledError, after the limit and not long after it."""
    began = time.monotonic()
    with pytest.raises(StalledError):
        ask(client)
    assert LIMIT_S * 0.9 < time.monotonic() - began < QUICKLY_S


@pytest.mark.parametrize("talk", [a_slow_head, interim_answers_for_ever, a_slow_error])
def test_an_answer_that_does_not_come_to_its_end_is_a_stall(
    talk: Talk, make_client: MakeClient
) -> None:
    with raw_server(talk) as host:
        client = make_client(host, attempts=1, stall_timeout_s=LIMIT_S)
        quickly(client, lambda client: client.tags("a"))


def test_the_deadline_holds_on_a_connection_that_is_used_again(make_client: MakeClient) -> None:
    def talk(connection: socket.socket, _head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        assert connection.recv(4096)
        a_slow_head(connection, b"")

    with raw_server(talk) as host:
        client = make_client(host, attempts=1, stall_timeout_s=LIMIT_S)
        client.ping()
        quickly(client, lambda client: client.ping())


def test_a_finished_upload_may_be_thought_about_for_longer(make_client: MakeClient) -> None:
    def talk(connection: socket.socket, head: bytes) -> None:
        if head.startswith(b"POST"):
            connection.sendall(
                b"HTTP/1.1 202 Accepted\r\nLocation: /v2/a/blobs/uploads/1\r\n"
                b"Content-Length: 0\r\nConnection: close\r\n\r\n"
            )
        elif head.startswith(b"PUT"):
            assert connection.recv(1) == b"x"
            trickle(connection, b"HTTP/1.1 201 Created\r\nConnection: close\r\n\r\n")

    def upload(client: RegistryClient) -> int:
        return client.upload("a", Digest.of(b"x"), 1, lambda offset: (c for c in [b"x"]))

    with raw_server(talk) as host:
        # On a busy machine the session itself may open too late; nobody finishes sooner by trying.
        patient = make_client(host, attempts=20, stall_timeout_s=LIMIT_S, answer_timeout_s=30.0)
        assert upload(patient) == 1
        hurried = make_client(host, attempts=1, stall_timeout_s=30.0, answer_timeout_s=LIMIT_S)
        quickly(hurried, upload)


def test_a_long_download_has_no_deadline_but_its_head(make_client: MakeClient) -> None:
    data = bytes(40 << 10)
    limit_s = 1.5  # it takes longer, and no part of it nearly as long

    def talk(connection: socket.socket, _head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data))
        for start in range(0, len(data), 1 << 10):
            connection.sendall(data[start : start + (1 << 10)])
            time.sleep(0.05)

    with raw_server(talk) as host:
        client = make_client(host, attempts=1, stall_timeout_s=limit_s, stall_min_bytes=1024)
        assert b"".join(client.blob("a", Digest.of(data))) == data


def test_a_challenge_whose_body_trickles_does_not_hold_up_the_login(
    make_client: MakeClient,
) -> None:
    def talk(connection: socket.socket, head: bytes) -> None:
        if b"authorization: basic" in head.lower():
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return
        connection.sendall(
            b'HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm="x"\r\nContent-Length: 4000\r\n\r\n'
        )
        trickle(connection, b"x" * 4000)

    with raw_server(talk) as host:
        client = make_client(host, Credentials("u", "p"), attempts=1, stall_timeout_s=LIMIT_S)
        began = time.monotonic()
        client.ping()
        assert time.monotonic() - began < QUICKLY_S


def test_a_quick_refusal_is_still_what_it_is(make_client: MakeClient) -> None:
    def talk(connection: socket.socket, _head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with raw_server(talk) as host:
        client = make_client(host, attempts=1, stall_timeout_s=LIMIT_S)
        with pytest.raises(DeniedError):
            client.tags("a")
