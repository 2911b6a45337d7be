"""How long a registry is waited for that is away or busy. No test waits: the clock is the waits."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from contextlib import nullcontext
from threading import Thread

import pytest

from mirror.errors import DeadlineError, UnreachableError
from mirror.oci import Digest
from mirror.registry import RegistryClient, RetryPolicy
from mirror.registry.retries import Backoff, Tally, TransientFailure
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


def aside(work: Callable[[], object]) -> None:
    """Do it in another thread, to the end."""
    one = Thread(target=work)
    one.start()
    one.join()


@pytest.mark.parametrize("status", [429, 503])
def test_an_upload_of_which_nothing_is_taken_ends_though_questions_of_others_are_answered(
    status: int, serve: Serve, make_client: MakeClient, fake: FakeRegistry, waits: list[float]
) -> None:
    """Two uploads ask after each pause how far they got: that is progress of neither."""

    def wait(delay_s: float) -> None:
        waits.append(delay_s)
        assert sum(waits) < 4000, "it never ends"
        aside(lambda: client.blob_size("b", DIGEST))

    def full(request: Request) -> Reply | None:
        if request.method not in ("PATCH", "PUT"):
            return None
        request.body  # noqa: B018
        return Reply(status)

    client = make_client(serve(fake).host, retries=patient([], 120, sleep=wait, patience_s=120))
    fake.fault = full
    with pytest.raises(UnreachableError):
        client.upload("a", DIGEST, len(DATA), content)
    assert 120 <= sum(waits) < 180


@pytest.mark.parametrize(
    ("where", "others", "ends"),
    [
        ("PUT h/a", [""], True),
        ("PUT h/a", ["", "GET", "POST", "DELETE"], True),
        ("PUT h/a", ["", "PUT"], False),
        ("GET h/a", ["", "POST", "DELETE"], True),
        ("GET h/a", ["", "GET"], False),
        ("HEAD h/a", ["", "GET"], False),
        ("GET h/a", ["", "PUT"], False),
    ],
)
@pytest.mark.parametrize("after_s", [None, 1.0])
def test_only_what_could_help_here_as_well_renews_patience(
    where: str, others: list[str], ends: bool, after_s: float | None
) -> None:
    tally, waits = Tally(), list[float]()

    def get_on() -> None:
        for kind in others:
            tally.add(kind)

    def wait(delay_s: float) -> None:
        waits.append(delay_s)
        aside(get_on)

    policy = patient([], 60, patience_s=60)
    backoff = Backoff(policy, wait, where, lambda _event: None, tally, lambda: True)
    error = UnreachableError(f"{where}: busy", where=where, status=503)
    with pytest.raises(UnreachableError) if ends else nullcontext():
        while sum(waits) < 1000:
            backoff.wait(TransientFailure(error, "busy", after_s))
    assert (sum(waits) < 120) == ends


def test_patience_is_renewed_by_bytes_that_the_registry_takes_from_others(
    serve: Serve, make_client: MakeClient, fake: FakeRegistry, waits: list[float]
) -> None:
    other = random.Random(12).randbytes(100_000)

    def of_other(offset: int) -> Generator[bytes, None, None]:
        yield other[offset:]

    def wait(delay_s: float) -> None:
        waits.append(delay_s)
        aside(lambda: client.upload("b", Digest.of(other), len(other), of_other))

    def limited(request: Request) -> Reply | None:
        if "/v2/a/" not in request.path or request.method != "PUT" or sum(waits) >= 400:
            return None
        request.body  # noqa: B018
        return Reply(429)

    client = make_client(serve(fake).host, retries=patient([], 60, sleep=wait, patience_s=60))
    fake.fault = limited
    client.upload("a", DIGEST, len(DATA), content)
    assert sum(waits) >= 400
