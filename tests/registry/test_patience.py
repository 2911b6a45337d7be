"""How long a registry is waited for that is away or busy. No test waits: the clock is the waits."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from threading import Thread

import pytest

from mirror.errors import DeadlineError, UnreachableError
from mirror.oci import Digest
from mirror.registry import RegistryClient, RetryPolicy
from mirror.registry.failures import Backoff, TransientFailure
from mirror.run import Run
from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.registry.conftest import MakeClient, Serve
from tests.support.fake_api import FakeRegistry, error
from tests.support.patience import without_waiting
from tests.support.processes import free_port
from tests.support.scripted_server import Hangup, Reply, Request

DATA = random.Random(11).randbytes(300_000)
DIGEST = Digest.of(DATA)


def content(offset: int) -> Generator[bytes, None, None]:
    yield DATA[offset:]


def patient(waits: list[float], retry_for_s: float = 300, **more: object) -> RetryPolicy:
    settings: dict[str, object] = {"retry_for_s": retry_for_s, "jitter": 0, "sleep": waits.append}
    return RetryPolicy(**{**settings, **more})  # type: ignore[arg-type]  # as tests give them


def busy(request: Request) -> Reply:
    request.body  # noqa: B018
    return error(503, "UNAVAILABLE", "restarting")


def cut(request: Request) -> Reply:
    raise Hangup


@pytest.mark.parametrize("fault", [busy, cut])
@pytest.mark.parametrize("away_s", [20, 120, 290])
def test_a_registry_that_restarts_ends_no_upload(
    fault: Callable[[Request], Reply],
    away_s: float,
    serve: Serve,
    make_client: MakeClient,
    fake: FakeRegistry,
    waits: list[float],
) -> None:
    client = make_client(serve(fake).host, retries=patient(waits))
    client.ping()
    fake.fault = lambda request: fault(request) if sum(waits) < away_s else None
    client.upload("a", DIGEST, len(DATA), content)
    assert fake.blobs == {str(DIGEST): DATA}
    assert away_s <= sum(waits) < away_s + 60


@pytest.mark.parametrize("fault", [busy, cut])
def test_patience_ends_when_nothing_got_through_for_so_long(
    fault: Callable[[Request], Reply],
    serve: Serve,
    make_client: MakeClient,
    fake: FakeRegistry,
    waits: list[float],
) -> None:
    client = make_client(serve(fake).host, retries=patient(waits, 120))
    client.ping()
    fake.fault = fault
    with pytest.raises(UnreachableError):
        client.blob_size("a", DIGEST)
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_registry_whose_port_is_closed_for_a_minute_is_there_again(
    make_client: MakeClient, waits: list[float]
) -> None:
    registry = EmbeddedRegistry(MemoryStorage(), port=free_port())

    def wait(delay_s: float) -> None:
        waits.append(delay_s)
        if sum(waits) >= 60:
            registry.__enter__()

    with registry:
        client = make_client(registry.address, retries=patient([], sleep=wait))
        client.ping()
    try:
        assert client.blob_size("a", DIGEST) is None
    finally:
        registry.__exit__()
    assert waits == [1, 2, 4, 8, 16, 30]


def test_a_registry_that_never_answered_has_its_attempts_alone(
    make_client: MakeClient, waits: list[float]
) -> None:
    client = make_client(f"127.0.0.1:{free_port()}", retries=patient(waits))
    with pytest.raises(UnreachableError, match="refuses connections"):
        client.ping()
    assert waits == [1, 2, 4, 8]


def test_who_asks_for_patience_gets_it_from_the_first_request_on(
    make_client: MakeClient, waits: list[float]
) -> None:
    policy = patient(waits, 60, from_start=True)
    client = make_client(f"127.0.0.1:{free_port()}", retries=policy)
    with pytest.raises(UnreachableError, match="refuses connections"):
        client.ping()
    assert waits == [1, 2, 4, 8, 16, 30]


def test_what_the_registry_breaks_down_over_has_its_attempts_alone(
    serve: Serve, make_client: MakeClient, fake: FakeRegistry, waits: list[float]
) -> None:
    client = make_client(serve(fake).host, retries=patient(waits))
    client.ping()
    fake.fault = lambda request: error(500, "UNKNOWN")
    with pytest.raises(UnreachableError, match="HTTP 500"):
        client.tags("a")
    assert waits == [1, 2, 4, 8]


def test_what_fails_while_others_are_answered_has_its_attempts_alone(
    serve: Serve, make_client: MakeClient, fake: FakeRegistry, waits: list[float]
) -> None:
    def wait(delay_s: float) -> None:
        waits.append(delay_s)
        one = Thread(target=client.ping)
        one.start()
        one.join()

    client = make_client(serve(fake).host, retries=patient([], sleep=wait))
    client.ping()
    fake.fault = lambda request: cut(request) if "/blobs/" in request.path else None
    with pytest.raises(UnreachableError, match="broke"):
        client.blob_size("a", DIGEST)
    assert waits == [1, 2, 4, 8, 16]  # at the first failure nobody had been answered


def test_a_registry_that_refuses_each_seventh_request_is_pushed_to(
    serve: Serve, make_client: MakeClient, fake: FakeRegistry, waits: list[float]
) -> None:
    count = 0

    def limited(request: Request) -> Reply | None:
        nonlocal count
        count += 1
        if count % 7 == 0:
            request.body  # noqa: B018
            return Reply(429)
        return None

    fake.fault = limited
    client = make_client(serve(fake).host, retries=patient(waits))
    for _ in range(60):
        client.upload("a", DIGEST, len(DATA), content)
    assert fake.opened >= 60


@pytest.mark.parametrize("fault", [busy, cut])
def test_a_deadline_ends_patience_at_once(
    fault: Callable[[Request], Reply], serve: Serve, make_client: MakeClient, fake: FakeRegistry
) -> None:
    policy = RetryPolicy(retry_for_s=600, base_delay_s=60, jitter=0)
    client: RegistryClient = make_client(serve(fake).host, retries=policy)
    client.ping()
    fake.fault = fault
    with without_waiting(30), pytest.raises(DeadlineError):
        client.within(Run().with_deadline(0.2)).blob_size("a", DIGEST)


def test_an_explicit_patience_holds_for_refusals_too(
    serve: Serve, make_client: MakeClient, waits: list[float]
) -> None:
    policy = patient(waits, 50, from_start=True)
    client = make_client(serve(lambda r: Reply(429, {"Retry-After": "10"})).host, retries=policy)
    with pytest.raises(UnreachableError, match="is rate limiting"):
        client.ping()
    assert waits == [10, 10, 10, 10, 16]


def test_answers_to_others_do_not_prolong_for_ever_what_never_comes(waits: list[float]) -> None:
    """A registry that is read-only answers every question, and takes nothing."""
    answered = iter(range(10_000))
    backoff = Backoff(
        patient(waits), waits.append, "PUT it", lambda _event: None, lambda: next(answered)
    )
    busy = TransientFailure(UnreachableError("busy", where="PUT it", status=503), "busy")

    def push() -> None:
        for _ in range(9_000):
            backoff.wait(busy)

    with pytest.raises(UnreachableError, match="busy"):
        push()
    assert 3_000 <= sum(waits) < 3_100
