"""A retry comes when it can help, waits as asked, and ends."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import CancelledError, RegistryError, UnreachableError
from mirror.events import Event, Retrying
from mirror.oci import Digest
from mirror.registry import ConnectionOptions, RegistryClient, RetryPolicy
from mirror.registry.retries import retry_after_s
from tests.registry.conftest import MakeClient, Serve
from tests.support.fake_api import error, times
from tests.support.scripted_server import Hangup, Reply, Request

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


@given(
    failures=st.integers(1, 10_000),
    base=st.floats(0, 10),
    cap=st.floats(0, 100),
    jitter=st.floats(0, 1),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_delays_stay_within_bounds(
    failures: int, base: float, cap: float, jitter: float, chance: float
) -> None:
    policy = RetryPolicy(base_delay_s=base, max_delay_s=cap, jitter=jitter, random=lambda: chance)
    assert 0 <= policy.delay_s(failures) <= min(cap, base * 2.0 ** min(failures, 60))


def test_what_the_server_asks_for_wins_up_to_the_cap() -> None:
    policy = RetryPolicy(jitter=0, max_retry_after_s=100)
    assert policy.delay_s(1, 50) == 50
    assert policy.delay_s(1, 0) == 1
    assert policy.delay_s(1, 1e9) == 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("0", 0),
        (" 120 ", 120),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0),
        ("Thu, 01 Jan 2026 12:00:30 -0000", 30),
        ("Thu, 99 Jan 2026 12:00:30 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(text: str | None, expected: float | None) -> None:
    assert retry_after_s(text, NOW) == expected


@given(st.text(max_size=40))
def test_no_retry_after_breaks_the_reader(text: str) -> None:
    value = retry_after_s(text, NOW)
    assert value is None or value >= 0


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_registry_is_asked_again(
    status: int,
    serve: Serve,
    make_client: MakeClient,
    waits: list[float],
    events: list[Event],
) -> None:
    busy = times(2, lambda r: True, lambda r: error(status, "TOOMANYREQUESTS", "slow down"))
    server = serve(lambda r: busy(r) or Reply())
    make_client(server.host).ping()
    assert waits == [1, 2]
    retries = [event for event in events if isinstance(event, Retrying)]
    assert [(event.attempt, event.delay_s) for event in retries] == [(1, 1), (2, 2)]
    assert retries[0].where == f"GET {server.host}/v2/"
    happened = "is rate limiting" if status == 429 else "has trouble"
    assert retries[0].reason == f"{server.host} {happened} (HTTP {status})"


def test_the_servers_own_time_is_waited(
    serve: Serve, make_client: MakeClient, waits: list[float]
) -> None:
    busy = times(1, lambda r: True, lambda r: Reply(429, {"Retry-After": "17"}))
    make_client(serve(lambda r: busy(r) or Reply()).host).ping()
    assert waits == [17]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 418, 501])
def test_an_answer_is_an_answer(
    status: int, serve: Serve, make_client: MakeClient, waits: list[float]
) -> None:
    server = serve(lambda r: Reply(status))
    with pytest.raises(RegistryError, match=f"HTTP {status}") as caught:
        make_client(server.host).ping()
    assert not caught.value.may_pass
    assert (len(server.log), waits) == (1, [])


def test_patience_ends_with_the_registrys_own_words(
    serve: Serve, make_client: MakeClient, waits: list[float]
) -> None:
    server = serve(lambda r: error(503, "UNAVAILABLE", "maintenance"))
    with pytest.raises(UnreachableError, match="UNAVAILABLE: maintenance") as caught:
        make_client(server.host, attempts=3).ping()
    assert (caught.value.status, caught.value.codes) == (503, ("UNAVAILABLE",))
    assert (caught.value.exit_code, caught.value.may_pass) == (5, True)
    assert (len(server.log), waits) == (3, [1, 2])


def test_a_connection_that_breaks_is_tried_again(
    serve: Serve, make_client: MakeClient, waits: list[float], events: list[Event]
) -> None:
    def hang_up(request: Request) -> Reply:
        raise Hangup

    fault = times(2, lambda r: True, hang_up)
    server = serve(lambda r: fault(r) or Reply())
    make_client(server.host).ping()
    assert waits == [1, 2]
    reasons = {event.reason for event in events if isinstance(event, Retrying)}
    assert reasons == {f"the connection to {server.host} broke"}


def test_closing_the_client_ends_the_waiting(serve: Serve) -> None:
    server = serve(lambda r: Reply(503, {"Retry-After": "100"}))
    client = RegistryClient(
        server.host,
        options=ConnectionOptions(plain_http=True),
        on_event=lambda event: client.close(),  # at the moment when the wait begins
    )
    with pytest.raises(CancelledError, match="was closed"):
        client.ping()
    with pytest.raises(CancelledError, match="was closed"):
        client.ping()


def test_what_answers_404_to_everything_is_no_registry(
    serve: Serve, make_client: MakeClient
) -> None:
    server = serve(lambda r: Reply(404, body=b"<h1>Welcome</h1>"))
    with pytest.raises(UnreachableError) as caught:
        make_client(server.host).ping()
    assert str(caught.value) == (
        f"{server.host} is not a registry (HTTP 404 for /v2/); check host and port"
    )
    assert (caught.value.exit_code, caught.value.status) == (5, 404)


def test_a_registry_that_takes_no_pushes_is_called_read_only(
    serve: Serve, make_client: MakeClient
) -> None:
    client = make_client(serve(lambda r: error(405, "UNSUPPORTED")).host)
    with pytest.raises(RegistryError, match=r"refuses \(HTTP 405, .*\); .* is read-only or"):
        client.upload("a", Digest.of(b"x"), 1, lambda offset: (c for c in [b"x"]))
    with pytest.raises(RegistryError, match=r"refuses \(HTTP 405, UNSUPPORTED: no\)$"):
        client.tags("a")


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"jitter": 2}])
def test_a_policy_that_makes_no_sense_is_the_callers_mistake(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="attempts >= 1"):
        RetryPolicy(**wrong)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("detail", "shown"),
    [
        ({"message": "no space left on device"}, "UNKNOWN: refused: no space left on device"),
        ("text/x is not\x1b[2J accepted", "UNKNOWN: refused: text/x is not\\x1b[2J accepted"),
        ({"a": 1, "b": 2}, 'UNKNOWN: refused: {"a": 1, "b": 2}'),
        (
            {"Driver": "fs", "Enclosed": {"Err": 28}},
            'UNKNOWN: refused: No space left on device: {"Driver": "fs", "Enclosed": {"Err": 28}}',
        ),
        (
            {"a": 1, "Enclosed": {"Err": 9**19}},
            f'UNKNOWN: refused: {{"a": 1, "Enclosed": {{"Err": {9**19}}}}}',
        ),
        (
            {"a": 1, "Enclosed": {"Err": True}},
            'UNKNOWN: refused: {"a": 1, "Enclosed": {"Err": true}}',
        ),
        (
            {"a": 1, "Enclosed": {"Err": [28]}},
            'UNKNOWN: refused: {"a": 1, "Enclosed": {"Err": [28]}}',
        ),
        ("refused", "UNKNOWN: refused"),
        (None, "UNKNOWN: refused"),
    ],
)
def test_the_registrys_own_reason_is_shown(
    detail: object, shown: str, serve: Serve, make_client: MakeClient
) -> None:
    body = json.dumps({"errors": [{"code": "UNKNOWN", "message": "refused", "detail": detail}]})
    client = make_client(serve(lambda r: Reply(400, body=body.encode())).host)
    with pytest.raises(RegistryError) as caught:
        client.tags("a")
    assert f"(HTTP 400, {shown})" in str(caught.value)
