"""What a host bears is found out, kept to, and shared by everybody who asks it."""

from __future__ import annotations

import gc
import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import RegistryError, UnreachableError
from mirror.oci import Digest
from mirror.registry import ConnectionOptions, RegistryClient, RetryPolicy
from mirror.registry.gate import HostGate, HostState, Permit
from tests.registry.conftest import MakeClient, Serve
from tests.support.fake_api import FakeRegistry
from tests.support.processes import free_port
from tests.support.scripted_server import Reply, Request, ScriptedServer
from tests.support.strategies import MORE_EXAMPLES

POLICY = RetryPolicy(jitter=0.5, random=lambda: 0.5)
Limit = Callable[[float, int], tuple[int, float | None]]
"""The answer to a request at a time, with so many others under way: status and `Retry-After`."""


def bears(most: int, retry_after_s: float | None = None) -> Limit:
    """A server that refuses what goes beyond so many requests at a time."""
    return lambda now, others: (200, None) if others < most else (503, retry_after_s)


def a_second(most: int) -> Limit:
    """A server that answers so many requests in each second of its clock."""
    seen: dict[int, int] = {}

    def answer(now: float, others: int) -> tuple[int, float | None]:
        second = int(now)
        seen[second] = seen.get(second, 0) + 1
        return (200, None) if seen[second] <= most else (429, 1.0)

    return answer


def bucket(rate: float, burst: int) -> Limit:
    """A server with a token bucket."""
    level, at = float(burst), 0.0

    def answer(now: float, others: int) -> tuple[int, float | None]:
        nonlocal level, at
        level, at = min(burst, level + (now - at) * rate), now
        if level < 1:
            return 429, 1.0
        level -= 1
        return 200, None

    return answer


class Simulation:
    """`jobs` workers of a client at one server, on a virtual clock. An answer takes `latency_s`."""

    def __init__(self, limit: Limit, jobs: int, latency_s: float, *, fixed: bool = False) -> None:
        self.limit, self.latency_s, self.fixed = limit, latency_s, fixed
        self.state = HostState(ConnectionOptions(retries=POLICY))
        self.done = self.refused = self.under_way = 0
        self.events: list[tuple[float, int, int, Permit | None, int, float | None]] = []
        self.order = itertools.count()
        self.waiting: list[int] = []
        self.failures = [0] * jobs
        self.now = self.wakes_at = 0.0
        for worker in range(jobs):
            self.at(0, worker)

    def at(
        self,
        when: float,
        worker: int,
        permit: Permit | None = None,
        status: int = 0,
        after_s: float | None = None,
    ) -> None:
        heapq.heappush(self.events, (when, next(self.order), worker, permit, status, after_s))

    def run(self, items: int) -> float:
        """The seconds for so many items."""
        while self.done < items:
            self.now, _, worker, permit, status, after_s = heapq.heappop(self.events)
            if permit is None:
                if worker >= 0:
                    self.waiting.append(worker)
            else:
                self.answered(worker, permit, status, after_s)
            self.start()
        return self.now

    def start(self) -> None:
        while self.waiting:
            hold_s = 0.0 if self.fixed else self.state.hold_s(self.now)
            if hold_s:
                if not self.now < self.wakes_at <= self.now + hold_s:
                    self.wakes_at = self.now + hold_s
                    self.at(self.wakes_at, -1)
                return
            if not self.fixed and not self.state.has_room():
                return
            worker = self.waiting.pop(0)
            status, after_s = self.limit(self.now, self.under_way)
            self.under_way += status == 200
            took_s = self.latency_s if status == 200 else self.latency_s / 10
            self.at(self.now + took_s, worker, self.state.start(self.now), status, after_s)

    def answered(self, worker: int, permit: Permit, status: int, after_s: float | None) -> None:
        if status == 200:
            self.under_way -= 1
            self.done += 1
            self.failures[worker] = 0
            self.state.answered(permit, self.now, quick=True)
            self.at(self.now, worker)
        else:
            self.refused += 1
            self.failures[worker] += 1
            self.state.refused(permit, self.now, status, after_s)
            self.at(self.now + POLICY.delay_s(self.failures[worker], after_s), worker)
        self.state.finish(permit)


def best_fixed_rate(limit: Callable[[], Limit], jobs: int, latency_s: float, items: int) -> float:
    """Items a second of the fixed width that is best for this server."""
    widths = [width for width in (1, 2, 4, 8, 64) if width <= jobs]
    return max(
        items / Simulation(limit(), width, latency_s, fixed=True).run(items) for width in widths
    )


@pytest.mark.parametrize("latency_s", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("jobs", [8, 64])
@pytest.mark.parametrize("most", [2, 8, 64])
@pytest.mark.parametrize("retry_after_s", [None, 1.0])
def test_the_width_that_a_server_bears_is_found(
    most: int, jobs: int, latency_s: float, retry_after_s: float | None
) -> None:
    shortest_s = 30 if retry_after_s else 0
    items = int(min(most, jobs) * max(200, shortest_s / latency_s))
    simulation = Simulation(bears(most, retry_after_s), jobs, latency_s)
    rate = items / simulation.run(items)
    best = best_fixed_rate(lambda: bears(most, retry_after_s), jobs, latency_s, items)
    assert rate >= 0.9 * best
    assert simulation.refused <= 2 * jobs + 0.01 * items


@pytest.mark.parametrize("latency_s", [0.005, 0.05, 0.3])
@pytest.mark.parametrize("jobs", [8, 64])
@pytest.mark.parametrize("rate", [5, 10, 50])
@pytest.mark.parametrize("kind", ["window", "bucket", "burst"])
def test_the_pace_that_a_server_allows_is_found(
    kind: str, rate: int, jobs: int, latency_s: float
) -> None:
    def limit() -> Limit:
        if kind == "window":
            return a_second(rate)
        return bucket(rate, rate if kind == "bucket" else 5 * rate)

    items = 60 * rate  # a minute's work
    simulation = Simulation(limit(), jobs, latency_s)
    found = items / simulation.run(items)
    best = best_fixed_rate(limit, jobs, latency_s, items)
    assert found >= 0.9 * best
    assert simulation.refused <= 3 * jobs + 0.1 * items


@MORE_EXAMPLES
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["start", "answer", "refuse", "throttle", "break", "dead", "finish"]),
            st.floats(0, 5),
        ),
        max_size=80,
    )
)
def test_whatever_happens_there_is_room_in_the_end(steps: list[tuple[str, float]]) -> None:
    state, now, under_way = HostState(ConnectionOptions(retries=POLICY)), 0.0, list[Permit]()
    error = UnreachableError("down", where="GET x")
    for step, after_s in steps:
        now += after_s
        if step == "start" and state.has_room() and not state.hold_s(now):
            under_way.append(state.start(now))
        elif under_way and step != "start":
            permit = under_way.pop(0)
            if step == "answer":
                state.answered(permit, now, quick=True)
            elif step == "refuse":
                state.refused(permit, now, 503, None)
            elif step == "throttle":
                state.refused(permit, now, 429, after_s)
            elif step == "break":
                state.broke(permit)
            elif step == "dead":
                state.unreachable(permit, now, error)
            state.finish(permit)
        assert 1 <= state.width <= 100
        assert state.pace > 0
        assert state.in_flight >= 0
    for permit in under_way:
        state.finish(permit)
    assert state.in_flight == 0
    assert state.hold_s(now) <= 120 * 1.1
    assert state.has_room()


def test_refusals_at_one_moment_are_no_pace() -> None:
    state = HostState(ConnectionOptions(retries=POLICY))
    for permit in [state.start(1.0) for _ in range(3)]:
        state.refused(permit, 1.0, 429, 0.0)
        state.finish(permit)
    assert state.has_room()


def ask(state: HostState, now: float, latency_s: float, at_once: int = 8) -> float:
    """So many requests at a time, all answered after so long; the time then."""
    permits = [state.start(now) for _ in range(at_once) if state.has_room()]
    for permit in permits:
        state.answered(permit, now + latency_s, quick=True)
    for permit in permits:
        state.finish(permit)
    return now + latency_s


def test_a_host_that_slows_down_is_asked_less_at_a_time() -> None:
    state, now, widths = HostState(ConnectionOptions(retries=POLICY)), 0.0, list[float]()
    for _ in range(5):
        now = ask(state, now, 0.1)
    quick = state.width
    for _ in range(20):
        now = ask(state, now, 4.0)
        widths.append(state.width)
    assert widths[-1] < min(quick, 8)
    # Once in five seconds: what was under way before the cut says nothing about it.
    assert all(after >= int(before * 0.8) for before, after in itertools.pairwise(widths))
    assert min(widths) >= 1
    assert state.has_room()


def test_a_host_that_was_slow_from_the_beginning_is_asked_as_much_as_before() -> None:
    state, now = HostState(ConnectionOptions(retries=POLICY)), 0.0
    for _ in range(20):
        now = ask(state, now, 4.0)
    assert state.width == ConnectionOptions().max_connections


def test_long_uploads_say_nothing_about_the_host() -> None:
    state, now = HostState(ConnectionOptions(retries=POLICY)), 0.0
    for latency_s in [0.1] * 5 + [60.0] * 20:
        permits = [state.start(now) for _ in range(8)]
        now += latency_s
        for permit in permits:
            state.answered(permit, now, quick=False)
            state.finish(permit)
    assert state.width == ConnectionOptions().max_connections


def test_bytes_keep_to_the_rate_together() -> None:
    state = HostState(ConnectionOptions(limit_rate=1000))
    assert state.spend(500, 10.0) == 0.5
    assert state.spend(500, 10.0) == 1.0
    assert state.spend(100, 20.0) == pytest.approx(0.1)
    assert HostState(ConnectionOptions()).spend(1 << 40, 0.0) == 0


def test_transfers_of_one_client_keep_to_its_rate(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, make_client: MakeClient
) -> None:
    data = bytes(200_000)
    slept: list[float] = []
    retries = RetryPolicy(sleep=slept.append)
    slow = make_client(fake_server.host, limit_rate=100_000, retries=retries)
    assert slow.upload("a", Digest.of(data), len(data), lambda at: (c for c in [data[at:]])) > 0
    assert sum(slept) == pytest.approx(2.0, abs=0.2)
    assert len(b"".join(slow.blob("a", Digest.of(data)))) == len(data)
    assert sum(slept) == pytest.approx(4.0, abs=0.2)


def test_clients_of_one_host_share_its_rate(
    fake: FakeRegistry, fake_server: ScriptedServer, make_client: MakeClient
) -> None:
    data, slept = bytes(200_000), list[float]()
    options = {"limit_rate": 100_000, "retries": RetryPolicy(sleep=slept.append)}
    digest, content = Digest.of(data), lambda at: (c for c in [data[at:]])
    for repository in ("a", "b"):
        make_client(fake_server.host, **options).upload(repository, digest, len(data), content)
    assert sum(slept) == pytest.approx(4.0, abs=0.2)


def test_clients_of_one_host_share_what_it_bears(
    serve: Serve, make_client: MakeClient, waits: list[float]
) -> None:
    answers = iter([Reply(429, {"Retry-After": "7"})])
    server = serve(lambda request: next(answers, Reply()))
    first, second = make_client(server.host), make_client(server.host)
    assert first._transport._wire.gate is second._transport._wire.gate
    narrow = make_client(server.host, max_connections=2)
    assert narrow._transport._wire.gate is not first._transport._wire.gate
    first.ping()
    second.ping()
    assert waits == [7]


def test_a_token_server_has_a_gate_as_every_host(
    serve: Serve, make_client: MakeClient, waits: list[float]
) -> None:
    token = iter([Reply(429, {"Retry-After": "7"})])
    tokens = serve(lambda request: next(token, Reply(body=b'{"token": "t"}')))

    def registry(request: Request) -> Reply:
        if request.headers.get("authorization") == "Bearer t":
            return Reply(body=b'{"tags": []}')
        return Reply(401, {"WWW-Authenticate": f'Bearer realm="{tokens.url}/t",service="s"'})

    client = make_client(serve(registry).host)
    assert client.tags("a") == []
    assert waits == [7]
    gate = client._transport._wire.gate_of(tokens.url)
    assert sum(map(gate.tally.of_others, ("", "GET", "POST"))) == 0
    assert gate is make_client(tokens.host)._transport._wire.gate


def test_what_was_learnt_of_a_host_is_forgotten_with_its_last_client() -> None:
    options = ConnectionOptions(retries=POLICY)
    first = HostGate.of("example.com", 443, options)
    first.slept_s = 5.0
    assert HostGate.of("example.com", 443, options).slept_s == 5.0
    del first
    gc.collect()
    assert HostGate.of("example.com", 443, options).slept_s == 0.0


# -- in a client -----------------------------------------------------------------------------------


def test_one_refusal_holds_everybody_back(
    serve: Serve, make_client: MakeClient, waits: list[float]
) -> None:
    lock, seen = threading.Lock(), list[str]()

    def script(request: Request) -> Reply:
        with lock:
            seen.append(request.path)
            first = len(seen) == 1
        return Reply(429, {"Retry-After": "7"}) if first else Reply(body=b'{"tags": []}')

    server = serve(script)
    client = make_client(server.host)
    with ThreadPoolExecutor(8) as pool:
        client.ping()
        list(pool.map(client.tags, [f"r{number}" for number in range(20)]))
    assert waits == [7]


def test_a_dead_host_is_tried_by_one_and_told_to_all(make_client: MakeClient) -> None:
    host = f"127.0.0.1:{free_port()}"
    client = make_client(host)

    def work(_: int) -> RegistryError:
        with pytest.raises(UnreachableError, match="refuses connections") as caught:
            client.ping()
        return caught.value

    with ThreadPoolExecutor(8) as pool:
        errors = list(pool.map(work, range(64)))
    assert len({id(error) for error in errors}) == 64


def test_a_limit_of_requests_does_not_end_the_work(
    serve: Serve, make_client: MakeClient, waits: list[float]
) -> None:
    """More refusals than attempts, at the default width."""
    lock, count = threading.Lock(), itertools.count()

    def script(request: Request) -> Reply:
        with lock:
            number = next(count)
        return Reply(429, {"Retry-After": "1"}) if number % 2 else Reply(body=b'{"tags": []}')

    client = make_client(serve(script).host)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(client.tags, ["a"] * 60)) == [[]] * 60


def test_patience_with_a_server_that_only_asks_for_it_ends(
    serve: Serve, make_client: MakeClient, waits: list[float]
) -> None:
    server = serve(lambda r: Reply(429, {"Retry-After": "60"}))
    with pytest.raises(UnreachableError, match="rate limiting"):
        make_client(server.host).ping()
    assert waits == [60] * 5


def test_one_client_on_both_sides_does_not_lock_itself(
    serve: Serve, make_client: MakeClient
) -> None:
    data = bytes(100_000)
    digest = Digest.of(data)

    def script(request: Request) -> Reply:
        if request.method == "GET":
            return Reply(body=data)
        if request.method == "POST":
            return Reply(202, {"Location": "/v2/b/blobs/uploads/1"})
        assert request.body == data
        return Reply(201)

    client = make_client(serve(script).host, max_connections=2)

    def carry(_: int) -> int:
        return client.upload("b", digest, len(data), lambda at: client.blob("a", digest, offset=at))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(carry, range(16))) == [len(data)] * 16
