"""The daemon's loop: independent replicas, wakes, back-off, a clean end."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable

import pytest

from mirror.errors import CancelledError, MirrorError
from mirror.run import Run
from mirror.watch.cycle import CycleResult
from mirror.watch.daemon import Cycle, Daemon
from mirror.watch.settings import CheckLevel, Schedule
from tests.support.patience import PATIENCE_S, wait_until, without_waiting

HOURLY = Schedule(interval=3600, jitter=0, audit_every=None)


class Cycles:
    """A cycle that counts, and does what a test tells it to for each replica."""

    def __init__(self) -> None:
        self.levels: dict[str, list[CheckLevel]] = defaultdict(list)
        self.behaviour: dict[str, Callable[[Run], CycleResult]] = {}

    def __call__(self, replica: str, level: CheckLevel, run: Run) -> CycleResult:
        self.levels[replica].append(level)
        act = self.behaviour.get(replica)
        return act(run) if act else CycleResult(level, complete=True, declared=5, verified=5)

    def count(self, replica: str) -> int:
        """How many cycles there were for `replica`."""
        return len(self.levels[replica])


class Running:
    """A daemon while the `with` block lasts."""

    def __init__(self, cycle: Cycle, *followers: str, schedule: Schedule = HOURLY) -> None:
        self.daemon = Daemon(followers, cycle, schedule=schedule, chance=lambda: 0.5)

    def __enter__(self) -> Daemon:
        self.daemon.start()
        return self.daemon

    def __exit__(self, *_: object) -> None:
        self.daemon.stop()


def test_every_replica_is_looked_at_at_once_and_then_at_its_pace() -> None:
    cycles = Cycles()
    with Running(cycles, "a", "b", schedule=Schedule(interval=0.01, jitter=0, audit_every=None)):
        wait_until(lambda: cycles.count("a") > 3 and cycles.count("b") > 3)


def test_a_replica_that_hangs_holds_up_no_other() -> None:
    cycles = Cycles()

    def hang(run: Run) -> CycleResult:
        assert run.cancellation.wait(PATIENCE_S)
        raise CancelledError("stopped on request")

    cycles.behaviour["slow"] = hang
    with Running(
        cycles, "slow", "quick", schedule=Schedule(interval=0.01, jitter=0, audit_every=None)
    ) as daemon:
        wait_until(lambda: cycles.count("quick") > 5)
        assert cycles.count("slow") == 1
        assert daemon.state.to_document()["replicas"]["slow"] is None
    assert not daemon.alive()


def test_a_notification_starts_a_cycle_at_once() -> None:
    cycles = Cycles()
    with Running(cycles, "a") as daemon:
        wait_until(lambda: cycles.count("a") == 1 and daemon.state.ready())
        daemon.wake()
        wait_until(lambda: cycles.count("a") == 2)


def test_a_push_during_a_cycle_gets_a_cycle_of_its_own() -> None:
    cycles, begun, go = Cycles(), threading.Event(), threading.Event()

    def wait_first(_: Run) -> CycleResult:
        begun.set()
        assert go.wait(PATIENCE_S)
        return CycleResult(CheckLevel.STATEMENT, complete=True)

    cycles.behaviour["a"] = wait_first
    with Running(cycles, "a") as daemon:
        assert begun.wait(PATIENCE_S)
        daemon.wake()
        go.set()
        wait_until(lambda: cycles.count("a") == 2)


def test_one_failed_replica_is_told_and_the_others_stay_ready() -> None:
    cycles = Cycles()

    def fail(_: Run) -> CycleResult:
        raise MirrorError("its disk is full; make room")

    cycles.behaviour["b"] = fail
    with Running(cycles, "a", "b") as daemon:
        wait_until(lambda: all(daemon.state.to_document()["replicas"].values()))
        document = daemon.state.to_document()
        page = daemon.metrics.page().decode()
    assert not document["ready"]
    assert document["replicas"]["a"]["complete"]
    assert document["replicas"]["b"]["errors"] == ["its disk is full; make room"]
    assert 'mirror_sync_errors_total{replica="b"} 1.0' in page
    assert 'mirror_replica_complete{replica="b"} 0.0' in page
    assert 'mirror_replica_complete{replica="a"} 1.0' in page


def test_ready_means_that_the_daemons_own_replica_is_complete() -> None:
    cycles = Cycles()
    cycles.behaviour["b"] = lambda _: CycleResult(
        CheckLevel.AUDIT, complete=False, declared=9, verified=2
    )
    daemon = Daemon(("a", "b"), cycles, schedule=HOURLY, this="a")
    assert not daemon.state.ready(), "nothing is known yet"
    daemon.start()
    try:
        wait_until(daemon.state.ready)
    finally:
        daemon.stop()


def test_the_deepest_look_due_is_taken_first_and_again_until_it_succeeded() -> None:
    cycles = Cycles()
    looks = iter([CycleResult(CheckLevel.DEEP, complete=False, errors=("one blob is missing",))])
    cycles.behaviour["a"] = lambda _: next(looks, CycleResult(CheckLevel.DEEP, complete=True))
    schedule = Schedule(interval=0.01, jitter=0, audit_every=None, deep_every=3600, backoff_limit=1)
    with Running(cycles, "a", schedule=schedule):
        wait_until(lambda: cycles.count("a") > 3)
    assert cycles.levels["a"][:4] == [
        CheckLevel.DEEP,
        CheckLevel.DEEP,
        CheckLevel.STATEMENT,
        CheckLevel.STATEMENT,
    ]


def test_stopping_cancels_what_is_under_way_and_leaves_no_thread() -> None:
    cycles, begun = Cycles(), threading.Event()

    def work(run: Run) -> CycleResult:
        begun.set()
        assert run.cancellation.wait(PATIENCE_S)
        raise CancelledError("stopped on request")

    cycles.behaviour["a"] = work
    before = threading.active_count()
    with without_waiting(PATIENCE_S), Running(cycles, "a", "b"):
        assert begun.wait(PATIENCE_S)
    assert threading.active_count() == before


def test_a_replica_that_waits_is_looked_at_at_its_pace_and_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cycles = Cycles()

    def wait(_: Run) -> CycleResult:
        left = f"{100 - cycles.count('edge')} s from now"
        return CycleResult(CheckLevel.STATEMENT, complete=False, waiting=left)

    cycles.behaviour["edge"] = wait
    pace = Schedule(interval=0.01, jitter=0, audit_every=None)
    with caplog.at_level("INFO"), Running(cycles, "edge", schedule=pace) as daemon:
        wait_until(lambda: cycles.count("edge") > 5)  # a failure would rest for a second
        assert not daemon.state.ready()
    assert [one.getMessage() for one in caplog.records] == [
        "edge: not complete (99 s from now) after statement, 0 bytes sent"
    ]


def test_a_bug_in_a_cycle_shows_in_the_daemons_health(caplog: pytest.LogCaptureFixture) -> None:
    cycles = Cycles()

    def bug(_: Run) -> CycleResult:
        raise RuntimeError("a bug")

    cycles.behaviour["a"] = bug
    with Running(cycles, "a") as daemon:
        wait_until(lambda: daemon.state.bugs() == {"a": "RuntimeError: a bug"})
        wait_until(
            lambda: 'mirror_sync_bugs_total{replica="a"} 1.0' in daemon.metrics.page().decode()
        )
        assert not daemon.state.ready()
        (error,) = daemon.state.to_document()["replicas"]["a"]["errors"]
        assert "a bug in mirror ended this cycle (RuntimeError: a bug)" in error
        assert daemon.alive()
    (logged,) = [one for one in caplog.records if one.exc_info]
    assert "a: the cycle ended with a bug in mirror" in logged.getMessage()


def test_a_bug_in_one_replicas_cycle_ends_no_replication() -> None:
    """Neither that of the others, nor, once whatever provoked it is over, its own."""
    cycles = Cycles()
    answers = iter([RuntimeError("a bug"), ValueError("another"), None])

    def bug(_: Run) -> CycleResult:
        if (error := next(answers, None)) is not None:
            raise error
        return CycleResult(CheckLevel.STATEMENT, complete=True)

    cycles.behaviour["a"] = bug
    often = Schedule(interval=0.01, jitter=0, audit_every=None, backoff_limit=0.01)
    with Running(cycles, "a", "b", schedule=often) as daemon:
        wait_until(lambda: cycles.count("a") > 3 and cycles.count("b") > 5)
        wait_until(daemon.state.ready)
        assert daemon.state.bugs() == {}


def test_lag_is_counted_in_generations() -> None:
    assert CycleResult(CheckLevel.AUDIT, complete=False, generation=3, leader_generation=5).lag == 2
    assert (
        CycleResult(CheckLevel.AUDIT, complete=False, generation=None, leader_generation=5).lag == 5
    )
    assert CycleResult(CheckLevel.AUDIT, complete=False, generation=3).lag is None
