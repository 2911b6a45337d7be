"""Whom to trust, how to get there, and what to tell when it does not work."""

from __future__ import annotations

import itertools
import logging
import os
import random
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from mirror.errors import (
    CancelledError,
    InputError,
    InvalidReferenceError,
    RegistryError,
    UnreachableError,
)
from mirror.oci import Digest
from mirror.registry import ConnectionOptions, Credentials, RegistryClient, RetryPolicy, connections
from mirror.registry.connections import Connections
from mirror.registry.hosts import Home, Origin, proxy_for, tls_context
from mirror.registry.http1 import Patience
from tests.registry.conftest import MakeClient, Serve
from tests.support.patience import PATIENCE_S, wait_until
from tests.support.processes import free_port
from tests.support.scripted_server import Reply, Request, Script, ScriptedServer
from tests.support.tls import Authority, served_with


@contextmanager
def tls_server(
    authority: Authority,
    hosts: tuple[str, ...] = ("127.0.0.1",),
    script: Script = lambda request: Reply(),
) -> Iterator[str]:
    """A registry behind TLS whose certificate `authority` signed; its host."""
    files = authority.issue(f"server-{'-'.join(hosts)}", hosts)
    with ScriptedServer(script, tls=served_with(files)) as server:
        yield server.host


def https(host: str, **options: object) -> RegistryClient:
    settings = ConnectionOptions(
        retries=RetryPolicy(attempts=2, sleep=lambda delay_s: None),
        **options,  # type: ignore[arg-type]  # of several types, as the options have them
    )
    return RegistryClient(host, options=settings)


def test_an_unknown_authority_is_not_trusted_until_named(authority: Authority) -> None:
    with tls_server(authority) as host:
        with https(host) as client, pytest.raises(UnreachableError) as caught:
            client.ping()
        message = str(caught.value)
        for hint in ("certificate of", host, "--ca", "--tls-skip-verify", "clock"):
            assert hint in message
        with https(host, ca_file=authority.certificate) as client:
            client.ping()
        with https(host, ca="# центр\n" + authority.certificate.read_text()) as client:
            client.ping()
        with https(host, verify=False) as client:
            client.ping()


def test_a_certificate_for_another_host_is_not_trusted(authority: Authority) -> None:
    with (
        tls_server(authority, ("example.com",)) as host,
        https(host, ca_file=authority.certificate) as client,
        pytest.raises(UnreachableError, match="mismatch"),
    ):
        client.ping()


def test_roots_come_from_the_environment(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    with tls_server(authority) as host, https(host) as client:
        client.ping()


def test_an_explicit_choice_of_no_roots_is_not_widened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert tls_context(ConnectionOptions()).get_ca_certs() == []


def test_who_is_not_verified_needs_no_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """To load them takes longer than all else that a client is made of."""
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", None)
    context = tls_context(ConnectionOptions(verify=False))
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)


def test_a_system_without_roots_gets_those_packed_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    nothing = ssl.DefaultVerifyPaths("", "", "SSL_CERT_FILE", "", "SSL_CERT_DIR", "")
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nothing)
    assert len(tls_context(ConnectionOptions()).get_ca_certs()) > 50


def test_a_ca_file_that_is_none_is_reported(tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.write_text("hello")
    with pytest.raises(InputError, match=r"--ca .*ca\.pem: no certificate in PEM form"):
        https("localhost", ca_file=empty)
    with pytest.raises(InputError, match="No such file"):
        https("localhost", ca_file=tmp_path / "absent")


@pytest.mark.parametrize("text", ["", "hello", "Сертификат"])
def test_an_authority_given_as_text_that_is_none_is_reported(text: str) -> None:
    with pytest.raises(InputError, match="not a certificate in PEM form"):
        https("localhost", ca=text)


def test_authorities_are_trusted_from_a_file_and_from_a_text_alike(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority.create(tmp_path / "other", "another")
    with (
        tls_server(authority) as host,
        https(host, ca_file=other.certificate, ca=authority.certificate.read_text()) as client,
    ):
        client.ping()


def test_plain_http_where_tls_was_expected_names_the_flag(serve: Serve) -> None:
    server = serve(lambda request: Reply())
    with https(server.host) as client, pytest.raises(UnreachableError, match="add --insecure"):
        client.ping()


def test_tls_where_plain_http_was_expected_names_the_flag(
    serve: Serve, make_client: MakeClient
) -> None:
    body = b"Client sent an HTTP request to an HTTPS server.\n"
    client = make_client(serve(lambda request: Reply(400, body=body)).host)
    with pytest.raises(UnreachableError, match="leave out --insecure"):
        client.ping()


def test_a_closed_port_is_named_after_the_retries(
    make_client: MakeClient, waits: list[float]
) -> None:
    host = f"127.0.0.1:{free_port()}"
    with pytest.raises(UnreachableError, match=f"{host} refuses connections") as caught:
        make_client(host).ping()
    assert caught.value.exit_code == 5
    assert len(waits) == 4


def test_a_name_that_does_not_resolve_is_told_at_once(
    make_client: MakeClient, waits: list[float]
) -> None:
    with pytest.raises(UnreachableError, match=r"the name registry\.invalid:5000 cannot be"):
        make_client("registry.invalid:5000").ping()
    assert waits == []


def test_a_name_is_resolved_without_a_thread_where_none_can_be_started(
    serve: Serve, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, refused = threading.Thread.start, list[str]()

    def starting(thread: threading.Thread) -> None:
        if thread.name.startswith("resolve-"):  # the server has threads of its own
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    host = serve(lambda request: Reply()).host
    monkeypatch.setattr(threading.Thread, "start", starting)
    make_client(host).ping()
    assert refused == ["resolve-127.0.0.1"]


def test_a_name_server_in_trouble_is_asked_again(
    make_client: MakeClient, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(socket, "getaddrinfo", again)
    with pytest.raises(UnreachableError, match="cannot be resolved"):
        make_client("registry.example.com").ping()
    assert len(waits) == 4


def test_a_registry_that_does_not_answer_is_not_waited_for_for_ever(
    serve: Serve, make_client: MakeClient
) -> None:
    release = threading.Event()

    def silent(request: Request) -> Reply:
        release.wait(PATIENCE_S)
        return Reply()

    client = make_client(serve(silent).host, attempts=1, stall_timeout_s=0.1)
    try:
        with pytest.raises(UnreachableError, match="did not answer in time"):
            client.ping()
    finally:
        release.set()


@pytest.mark.parametrize("host", ["", "a/b", "http://host", "host:0", "user@host", "ho st"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(InvalidReferenceError):
        RegistryClient(host)


def test_the_constructor_touches_no_network() -> None:
    RegistryClient("registry.invalid").close()


def test_a_proxy_from_the_environment_is_used_and_no_proxy_is_honoured(
    serve: Serve, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve(lambda request: Reply())
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    make_client("registry.example.com").ping()
    assert proxy.log[0].headers["host"] == "registry.example.com"
    direct = serve(lambda request: Reply())
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    make_client(direct.host).ping()
    assert (len(proxy.log), len(direct.log)) == (1, 1)


@pytest.mark.parametrize(
    ("exempt", "host", "direct"),
    [
        ("", "reg.example.com", False),
        ("*", "reg.example.com", True),
        ("example.com", "reg.example.com", True),
        (".example.com", "REG.example.com", True),
        ("*.example.com", "reg.example.com", True),
        ("example.com", "badexample.com", False),
        ("other, reg.example.com:5000", "reg.example.com", True),
        ("reg.example.com:5001", "reg.example.com", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8,fd00::/8", "fd00::1", True),
        ("[::1]", "::1", True),
        ("10.0.0.0/99,10.1.2.3/", "10.1.2.3", False),
    ],
)
def test_no_proxy_is_read_as_other_tools_read_it(exempt: str, host: str, direct: bool) -> None:
    proxies = {"https": "http://proxy:3128", "no": exempt}
    chosen = proxy_for("https", host, 5000, proxies)
    assert chosen == (None if direct else "http://proxy:3128")


def test_a_proxy_that_refuses_is_named(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: Request) -> Reply:
        return Reply(407)

    proxy = serve(refuse)
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    refused = pytest.raises(UnreachableError, match=r"the proxy on the way .* NO_PROXY")
    with https("registry.example.com") as client, refused:
        client.ping()


REGISTRY = "registry.example.com"
ADVICE = "; check HTTPS_PROXY and HTTP_PROXY, or name the host in NO_PROXY"


def silent() -> Iterator[str]:
    """A server that takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_dead_proxy_is_named_and_not_the_registry(
    scheme: str, monkeypatch: pytest.MonkeyPatch, make_client: MakeClient, waits: list[float]
) -> None:
    proxy = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://{proxy}")
    client = make_client(REGISTRY, plain_http=scheme == "http")
    with pytest.raises(UnreachableError) as caught:
        client.ping()
    told = f"the proxy on the way to {REGISTRY}, {proxy}, refuses connections{ADVICE}"
    assert told in str(caught.value)
    assert waits == [1, 2, 4, 8]


def test_a_proxy_whose_name_is_wrong_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, make_client: MakeClient, waits: list[float]
) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    with pytest.raises(UnreachableError) as caught:
        make_client(REGISTRY).ping()
    assert f"{REGISTRY}, proxy.invalid:3128, has a name that cannot be resolved" in str(
        caught.value
    )
    assert ADVICE in str(caught.value)
    assert waits == []


def test_a_proxy_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, make_client: MakeClient, waits: list[float]
) -> None:
    for proxy in silent():
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy}")
        client = make_client(REGISTRY, plain_http=False, stall_timeout_s=0.1, attempts=2)
        with pytest.raises(UnreachableError, match="did not answer in time") as caught:
            client.ping()
        assert f"the proxy on the way to {REGISTRY}, {proxy}, did" in str(caught.value)
    assert waits == [1]


@pytest.mark.parametrize(
    ("status", "told", "attempts"),
    [
        (403, "refused: HTTP 403", 1),
        (407, "asks for a login (HTTP 407): write http://user:password@host:port", 1),
        (502, "does not reach it (HTTP 502)", 5),
        (504, "does not reach it in time (HTTP 504)", 5),
    ],
)
def test_what_a_proxy_answers_to_connect_is_told_of_the_proxy(
    status: int,
    told: str,
    attempts: int,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    make_client: MakeClient,
) -> None:
    lines = b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status
    asked: list[bytes] = []

    def answer(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                with listener.accept()[0] as accepted:
                    asked.append(accepted.recv(4096))
                    accepted.sendall(lines)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        proxy = f"127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy}")
        with pytest.raises(UnreachableError) as caught:
            make_client(REGISTRY, plain_http=False).ping()
        listener.shutdown(socket.SHUT_RDWR)
    assert f"the proxy on the way to {REGISTRY}, {proxy}, {told}{ADVICE}" in str(caught.value)
    assert len(asked) == attempts


def test_a_proxy_that_wants_a_login_for_plain_http_is_named(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, make_client: MakeClient
) -> None:
    monkeypatch.setenv("HTTP_PROXY", serve(lambda request: Reply(407)).url)
    with pytest.raises(UnreachableError, match=r"the proxy on the way to .* asks for a login"):
        make_client(REGISTRY).ping()


@contextmanager
def connecting_proxy(context: ssl.SSLContext | None, asked: list[bytes]) -> Iterator[str]:
    """A proxy that connects with the host that `CONNECT` names; itself behind TLS or not."""

    def serve(accepted: socket.socket) -> None:
        wrapped = context.wrap_socket(accepted, server_side=True) if context else accepted
        with suppress(OSError), wrapped as client:
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(1)
            asked.append(head)
            host, _, port = head.split()[1].decode().rpartition(":")
            with socket.create_connection((host, int(port))) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                carry(client, server)

    def carry(client: socket.socket, server: socket.socket) -> None:
        """Both ways, in one thread: a TLS connection bears no two."""
        while True:
            here, there = select.select([client, server], [], [])[0], {client: server}
            for source in here:
                target = there.get(source, client)
                data = source.recv(1 << 16)
                while isinstance(source, ssl.SSLSocket) and source.pending():
                    data += source.recv(1 << 16)
                if not data:
                    return
                target.sendall(data)

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_registry_behind_tls_is_reached_through_a_proxy(
    scheme: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a proxy that is itself behind TLS, too: TLS inside of TLS."""
    context: ssl.SSLContext | None = None
    if scheme == "https":
        files = authority.issue("proxy", ("127.0.0.1",))
        context = served_with(files)
    data, asked = random.Random(1).randbytes(3 << 20), list[bytes]()
    replies = {"GET": Reply(body=data), "POST": Reply(202, {"Location": "/v2/a/blobs/uploads/1"})}
    got: list[bytes] = []

    def script(request: Request) -> Reply:
        if request.method == "PUT":
            got.append(request.body)
        return replies.get(request.method, Reply(201))

    with (
        tls_server(authority, script=script) as host,
        connecting_proxy(context, asked) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://user:pass%40@{proxy}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        with https(host, ca_file=authority.certificate) as client:
            assert b"".join(client.blob("a", Digest.of(data), size=len(data))) == data
            client.upload("a", Digest.of(data), len(data), lambda at: (c for c in [data[at:]]))
    assert got == [data]
    assert len(asked) == 1
    assert asked[0].startswith(f"CONNECT {host} HTTP/1.1\r\n".encode())
    assert b"Proxy-Authorization: Basic dXNlcjpwYXNzQA==\r\n" in asked[0]


@pytest.mark.parametrize(
    ("scheme", "message"), [("gopher", "HTTPS_PROXY"), ("socks5", "speaks SOCKS")]
)
def test_a_proxy_that_makes_no_sense_is_reported_without_its_password(
    scheme: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://user:s3cr3t@proxy:1")
    with pytest.raises(InputError, match=message) as caught:
        https("registry.example.com")
    assert "s3cr3t" not in str(caught.value)


def test_connections_are_kept_and_used_again(serve: Serve, make_client: MakeClient) -> None:
    peers: set[int] = set()
    server = serve(lambda request: Reply())
    accept = server._server.get_request

    def counted() -> tuple[socket.socket, object]:
        sock, address = accept()
        peers.add(address[1])
        return sock, address

    server._server.get_request = counted  # type: ignore[method-assign]  # to count
    client = make_client(server.host)
    for _ in range(20):
        client.ping()
        client.blob_size("a", Digest.of(b""))
    assert len(peers) == 1


@contextmanager
def answering(
    answer: Callable[[int, int], bytes | None], tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """A server by hand; its host. `answer` gets the number of a connection, and of a request there.

    No answer closes the connection.
    """

    def serve(sock: socket.socket, connection: int) -> None:
        with sock, suppress(OSError), tls.wrap_socket(sock, server_side=True) if tls else sock as c:
            for number in itertools.count():
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    if not (more := c.recv(1 << 16)):
                        return
                    head += more
                if (said := answer(connection, number)) is None:
                    return
                c.sendall(said)

    def accept() -> None:
        with suppress(OSError):
            for number in itertools.count():
                sock, _ = listening.accept()
                threading.Thread(target=serve, args=(sock, number), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)  # wakes the thread


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_comes_after_an_answer_is_not_the_next_one(scheme: str, authority: Authority) -> None:
    size = 1 << 20  # as much as is waited for at once
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
    said = head % size + bytes(size) + head % 4 + b"evil"
    context = None
    if scheme == "https":
        files = authority.issue("after", ("127.0.0.1",))
        context = served_with(files)
    options = ConnectionOptions(plain_http=scheme == "http", ca_file=authority.certificate)
    with (
        answering(lambda connection, number: said, context) as host,
        RegistryClient(host, options=options) as client,
    ):
        digest = Digest.of(bytes(size))
        for _ in range(3):
            assert sum(map(len, client.blob("a", digest))) == size
            # The bytes behind the answer are there, or come; both are noticed.
            for kept in client._transport._wire.connections._idle.values():
                for one in kept:
                    wait_until(one.stream.is_stale)


def test_a_kept_connection_that_closes_on_a_request_costs_nothing(
    make_client: MakeClient, waits: list[float]
) -> None:
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    with answering(lambda connection, number: good if connection or not number else None) as host:
        client = make_client(host)
        client.ping()
        client.ping()
    assert waits == []


def test_a_forked_process_leaves_its_parent_the_connections(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def answer(connection: int, number: int) -> bytes:
        asked.append((connection, number))
        return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    with answering(answer) as host:
        client = make_client(host)
        client.ping()
        monkeypatch.setattr(os, "getpid", lambda: -1)
        client.ping()
        client.ping()
    assert asked == [(0, 0), (1, 0), (1, 1)]


def test_a_new_connection_that_closes_on_a_request_is_a_failure(
    make_client: MakeClient, waits: list[float]
) -> None:
    with (
        answering(lambda connection, number: None) as host,
        pytest.raises(UnreachableError, match="it ended without an answer"),
    ):
        make_client(host, attempts=3).ping()
    assert len(waits) == 2


def test_connections_to_hosts_that_nobody_asks_any_more_are_closed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_IDLE_S", -1.0)
    pool = Connections(ConnectionOptions(plain_http=True), Origin("http", "127.0.0.1", 80))
    patience = Patience(5.0, 5.0, 5.0, lambda: None)
    for server in (serve(lambda request: Reply()), serve(lambda request: Reply())):
        response = pool.send("GET", f"http://{server.host}/", {}, None, patience)
        list(response.pieces())
        response.close()
    assert sum(map(len, pool._idle.values())) == 1
    pool.close()


@pytest.mark.parametrize("length", ["²", "1" * 5000])
def test_a_redirect_with_a_length_that_is_none_is_followed(
    length: str, make_client: MakeClient
) -> None:
    moved = f"HTTP/1.1 307 X\r\nLocation: /b\r\nContent-Length: {length}\r\n\r\n".encode()
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
    with answering(lambda connection, number: moved if not connection + number else good) as host:
        assert make_client(host).blob_size("a", Digest.of(b"abc")) == 3


def test_one_client_serves_many_threads(serve: Serve, make_client: MakeClient) -> None:
    data = bytes(range(256)) * 1000
    digest = Digest.of(data)
    client = make_client(serve(lambda request: Reply(body=data)).host)
    with ThreadPoolExecutor(8) as pool:
        done = pool.map(lambda _: b"".join(client.blob("a", digest)) == data, range(32))
    assert all(done)


def test_answers_of_many_threads_do_not_change_places(
    serve: Serve, make_client: MakeClient
) -> None:
    """With and without bodies, which give their connection back at different moments."""
    server = serve(lambda r: Reply(202) if r.method == "DELETE" else Reply(body=r.path.encode()))
    client = make_client(server.host)

    def ask(number: int) -> None:
        data = f"/v2/{'a' * (number % 50 + 1)}/blobs/{Digest.of(b'x')}".encode()
        repository = data.decode().split("/")[2]
        assert client.blob_size(repository, Digest.of(b"x")) == len(data)
        assert b"".join(client.blob(repository, Digest.of(b"x"), verify=False)) == data
        client.delete_blob(repository, Digest.of(b"x"))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(400)))


def test_cookies_are_not_kept(serve: Serve, make_client: MakeClient) -> None:
    server = serve(lambda request: Reply(200, {"Set-Cookie": "sid=1; Path=/"}))
    client = make_client(server.host)
    client.ping()
    client.ping()
    assert "cookie" not in server.log[1].headers


def test_closing_the_client_stops_transfers_of_other_threads(
    serve: Serve, make_client: MakeClient
) -> None:
    data, closed = bytes(4 << 20), threading.Event()

    def slow(request: Request) -> Reply:
        def chunks() -> Iterator[bytes]:
            yield data
            closed.wait(PATIENCE_S)
            yield data

        return Reply(body=chunks(), length=2 * len(data))

    client = make_client(serve(slow).host)
    blob = client.blob("a", Digest.of(data * 2))
    next(blob)
    client.close()
    closed.set()
    with pytest.raises(CancelledError, match="was closed"):
        list(blob)


def test_an_address_at_home_keeps_our_scheme_and_never_falls_back() -> None:
    home = Home("reg.example.com", "https://reg.example.com")
    base = "https://reg.example.com/v2/"
    assert home.resolved("/v2/x?a=%2F", base) == "https://reg.example.com/v2/x?a=%2F"
    assert home.resolved("http://reg.example.com/v2/x", base) == "https://reg.example.com/v2/x"
    assert home.resolved("http://reg.example.com:443/x", base) == "https://reg.example.com/x"
    assert home.resolved("http://reg.example.com:8080/x", base) == "http://reg.example.com:8080/x"
    assert not home.holds("http://reg.example.com:8080/x")
    assert not home.holds("https://reg.example.com.evil/x")
    assert not home.holds("https://evil/reg.example.com")
    assert not home.holds("https://reg.example.com:99999/")
    assert home.holds("HTTPS://REG.example.com:443/x")
    with pytest.raises(RegistryError, match="cannot be used"):
        home.resolved("http://[::1", base)


def test_docker_hub_is_asked_at_its_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def nowhere(host: object, *args: object, **kwargs: object) -> None:
        asked.append(str(host))
        raise socket.gaierror(socket.EAI_NONAME, "no")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    with https("docker.io") as client, pytest.raises(UnreachableError):
        client.ping()
    assert asked == ["registry-1.docker.io"]


def test_a_redirected_registry_does_not_get_our_login(
    serve: Serve, make_client: MakeClient
) -> None:
    def other(request: Request) -> Reply:
        return Reply(401, {"WWW-Authenticate": 'Basic realm="give it to me"'})

    evil = serve(other)
    client = make_client(
        serve(lambda r: Reply(307, {"Location": f"{evil.url}{r.path}"})).host,
        Credentials("u", "p"),
    )
    with pytest.raises(RegistryError, match=f"{evil.host.split(':')[0]}"):
        client.tags("a")
    assert len(evil.log) == 1
    assert "authorization" not in evil.log[0].headers


def test_httpx_keeps_signed_addresses_out_of_the_log(
    serve: Serve, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(lambda r: Reply() if r.query else Reply(307, {"Location": "/v2/?sig=s3cr3t"}))
    caplog.set_level("DEBUG", logger="mirror")
    make_client(server.host).ping()
    assert "s3cr3t" not in caplog.text
    assert caplog.records


def test_requests_of_others_are_logged_as_they_were(
    serve: Serve, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """What the host program sends itself through httpx and httpcore is its own business."""
    levels = {name: logging.getLogger(name).level for name in ("httpx", "httpcore")}
    server = serve(lambda r: Reply() if r.query else Reply(307, {"Location": "/v2/?sig=s3cr3t"}))
    caplog.set_level("DEBUG")
    make_client(server.host).ping()
    assert "s3cr3t" not in caplog.text
    caplog.clear()
    httpx.get(f"{server.url}/v2/")
    names = {record.name.partition(".")[0] for record in caplog.records}
    assert {"httpx", "httpcore"} <= names
    assert levels == dict.fromkeys(levels, logging.NOTSET)
