"""A view of a client listens to its run at every wait, and leaves the client as it was."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from mirror.errors import CancelledError, DeadlineError
from mirror.events import Event, Retrying
from mirror.oci import Digest
from mirror.registry import ConnectionOptions, RegistryClient, RetryPolicy
from mirror.run import Cancellation, Run, Width
from mirror.testing import EmbeddedRegistry
from tests.registry.conftest import Serve
from tests.registry.test_trickle import raw_server
from tests.support.patience import PATIENCE_S, wait_until
from tests.support.scripted_server import Reply, Request, ScriptedServer

SOON_S = 8.0
"""On a machine that does other things too. What is stopped would go on for a multiple of it."""


def stopped_soon(
    run: Run, work: Callable[[], object], begun: Callable[[], object] = lambda: True
) -> None:
    """Expect that `work` ends within `SOON_S` of the run's cancellation, a moment after `begun`."""
    moments: list[float] = []

    def stop() -> None:
        wait_until(begun)
        moments.append(time.monotonic())
        run.cancellation.cancel()

    timer = threading.Timer(0.1, stop)
    timer.start()
    with pytest.raises(CancelledError):
        work()
    assert time.monotonic() - moments[0] < SOON_S
    timer.join()


def test_a_wait_that_the_server_asks_for_ends_with_the_run(serve: Serve) -> None:
    busy = [True]
    server = serve(lambda r: Reply(503, {"Retry-After": "100"}) if busy[0] else Reply())
    heard: list[Event] = []
    run = Run(on_event=heard.append)
    with RegistryClient(server.host, options=ConnectionOptions(plain_http=True)) as client:
        stopped_soon(run, client.within(run).ping, lambda: heard)
        assert [type(event) for event in heard] == [Retrying]
        asked = len(server.log)
        with pytest.raises(CancelledError):
            client.within(run).ping()
        assert len(server.log) == asked  # nothing is sent for a run that was stopped


def test_the_deadline_bounds_a_wait(serve: Serve) -> None:
    server = serve(lambda r: Reply(503, {"Retry-After": "100"}))
    with RegistryClient(server.host, options=ConnectionOptions(plain_http=True)) as client:
        began = time.monotonic()
        with pytest.raises(DeadlineError):
            client.within(Run().with_deadline(0.2)).ping()
        assert time.monotonic() - began < SOON_S


def test_the_client_serves_other_runs_after_one_was_stopped(serve: Serve) -> None:
    server = serve(lambda r: Reply())
    with RegistryClient(server.host, options=ConnectionOptions(plain_http=True)) as client:
        stopped = Run()
        stopped.cancellation.cancel()
        with pytest.raises(CancelledError):
            client.within(stopped).ping()
        client.within(Run(cancellation=Cancellation())).ping()
        client.ping()


def test_closing_a_view_leaves_the_client_open(serve: Serve) -> None:
    server = serve(lambda r: Reply())
    with RegistryClient(server.host, options=ConnectionOptions(plain_http=True)) as client:
        with client.within(Run()) as view:
            view.ping()
        client.ping()


def a_full_backlog(stack: ExitStack) -> str:
    """A host whose connections are never accepted, nor refused."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    port = listener.getsockname()[1]
    for _ in range(8):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        with suppress(BlockingIOError):
            waiting.connect(("127.0.0.1", port))
    return f"127.0.0.1:{port}"


def a_name_that_is_looked_up_for_ever(stack: ExitStack) -> str:
    release = threading.Event()

    def slow(*args: object, **kwargs: object) -> object:
        release.wait(30)
        return []

    stack.enter_context(pytest.MonkeyPatch.context()).setattr(socket, "getaddrinfo", slow)
    stack.callback(release.set)
    return "registry.example.com"


def silent(stack: ExitStack) -> str:
    """A host that accepts and reads, and never says a word."""
    return stack.enter_context(raw_server(lambda connection, head: hold(connection)))


def hold(connection: socket.socket) -> None:
    """Return once the client hangs up."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    poll.poll(30_000)


def half_an_answer(stack: ExitStack) -> str:
    """A host that sends some of a body and then nothing more."""

    def talk(connection: socket.socket, head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 33554432\r\n\r\n" + bytes(99))
        hold(connection)

    return stack.enter_context(raw_server(talk))


def takes_nothing(stack: ExitStack) -> str:
    """A host that opens an upload and does not read its bytes."""

    def talk(connection: socket.socket, head: bytes) -> None:
        if head.startswith(b"POST"):
            connection.sendall(
                b"HTTP/1.1 202 Accepted\r\nLocation: /v2/a/blobs/uploads/1\r\n"
                b"Content-Length: 0\r\nConnection: close\r\n\r\n"
            )
            return
        hold(connection)

    return stack.enter_context(raw_server(talk))


BLOB = bytes(32 << 20)


def ping(client: RegistryClient) -> None:
    client.ping()


def download(client: RegistryClient) -> None:
    list(client.blob("a", Digest.of(BLOB), size=len(BLOB)))


def upload(client: RegistryClient) -> None:
    client.upload("a", Digest.of(BLOB), len(BLOB), lambda offset: (c for c in [BLOB[offset:]]))


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    ("host", "work"),
    [
        (a_full_backlog, ping),
        (a_name_that_is_looked_up_for_ever, ping),
        (silent, ping),
        (half_an_answer, download),
        (takes_nothing, upload),
    ],
)
def test_stopping_the_run_ends_a_wait_for_the_network(
    host: Callable[[ExitStack], str], work: Callable[[RegistryClient], None], tls: bool
) -> None:
    with ExitStack() as stack:
        # Of those that do not speak TLS, the handshake is what never ends.
        options = ConnectionOptions(plain_http=not tls, verify=False)
        client = stack.enter_context(RegistryClient(host(stack), options=options))
        run = Run()
        stopped_soon(run, lambda: work(client.within(run)))


def test_closing_the_client_ends_a_wait_for_the_network() -> None:
    with ExitStack() as stack:
        client = RegistryClient(silent(stack), options=ConnectionOptions(plain_http=True))
        timer = threading.Timer(0.1, client.close)
        timer.start()
        began = time.monotonic()
        with pytest.raises(CancelledError, match="was closed"):
            client.ping()
        assert time.monotonic() - began < SOON_S
        timer.join()


def test_one_view_is_stopped_and_the_other_goes_on(serve: Serve) -> None:
    gate = threading.Event()

    def script(request: Request) -> Reply:
        if request.path != "/v2/":
            gate.wait(PATIENCE_S)
        return Reply(body=b'{"tags": ["t"]}')

    server = serve(script)
    with RegistryClient(server.host, options=ConnectionOptions(plain_http=True)) as client:
        stopped, other = Run(), Run()
        with ThreadPoolExecutor(1) as pool:
            listing = pool.submit(client.within(other).tags, "a")
            stopped_soon(stopped, lambda: client.within(stopped).tags("b"))
            gate.set()
            assert listing.result(PATIENCE_S) == ["t"]


def test_a_run_hears_how_soon_small_requests_are_answered(
    monkeypatch: pytest.MonkeyPatch, embedded_registry: EmbeddedRegistry
) -> None:
    heard: list[tuple[str, int]] = []

    def hear(_width: Width, host: str, after_s: float, at_once: int) -> None:
        assert 0 < after_s < PATIENCE_S
        heard.append((host, at_once))

    monkeypatch.setattr(Width, "hear", hear)
    data = bytes(1 << 20)
    options = ConnectionOptions(plain_http=True)
    with RegistryClient(embedded_registry.address, options=options) as client:
        view = client.within(Run())
        view.blob_size("a", Digest.of(data))
        assert heard == [(client.host, 1)]
        view.upload("a", Digest.of(data), len(data), lambda at: (one for one in [data[at:]]))
    assert len(heard) == 2, "the opening of the upload, but not the upload itself"


def test_a_refusal_says_nothing_of_a_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is asked too often refuses at once, and bears no more for that."""
    heard: list[str] = []
    monkeypatch.setattr(Width, "hear", lambda _width, host, *_rest: heard.append(host))
    answers = iter([Reply(429), Reply(503), Reply(404)])
    retries = RetryPolicy(attempts=3, base_delay_s=0, sleep=lambda _seconds: None)
    with ScriptedServer(lambda _request: next(answers)) as server:
        options = ConnectionOptions(plain_http=True, retries=retries)
        with RegistryClient(server.host, options=options) as client:
            assert client.within(Run()).blob_size("a", Digest.of(b"")) is None
    assert heard == [server.host]
