"""`start`: operations in the background, and their handles."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mirror.errors import CancelledError, NotFoundError
from mirror.events import Event, PhaseAdvanced, PhaseStarted
from mirror.job import start
from mirror.run import Run

_PATIENCE_S = 20.0


def count(last: int, *, run: Run | None = None) -> int:
    """An operation that reports each step."""
    run = Run.of(run)
    run.on_event(PhaseStarted("counting", last))
    for _ in range(last):
        run.check()
        run.on_event(PhaseAdvanced())
    return last


def wait(*, run: Run | None = None) -> None:
    """An operation that never ends by itself."""
    Run.of(run).sleep(_PATIENCE_S)


def fail(*, run: Run | None = None) -> None:
    """An operation that cannot be done."""
    raise NotFoundError("it is not there")


def test_a_job_hands_out_its_events_and_its_result() -> None:
    job = start(count, 3)
    assert list(job.events()) == [PhaseStarted("counting", 3), *3 * [PhaseAdvanced()]]
    assert job.result(_PATIENCE_S) == 3
    assert job.done
    assert list(job.events()) == []


def test_a_listener_of_the_run_hears_everything_as_well() -> None:
    heard: list[Event] = []
    job = start(count, 2, run=Run(on_event=heard.append))
    assert job.result(_PATIENCE_S) == 2
    assert heard == list(job.events())


def test_a_job_that_is_cancelled_says_so_and_leaves_its_callers_run_alone() -> None:
    callers = Run()
    job = start(wait, run=callers)
    job.cancel()
    with pytest.raises(CancelledError, match="stopped on request"):
        job.result(_PATIENCE_S)
    callers.check()


def test_cancelling_the_run_cancels_the_job() -> None:
    callers = Run()
    job = start(wait, run=callers)
    callers.cancellation.cancel()
    with pytest.raises(CancelledError, match="stopped on request"):
        job.result(_PATIENCE_S)


def test_what_an_operation_raises_is_raised_by_its_result() -> None:
    job = start(fail)
    with pytest.raises(NotFoundError, match="it is not there"):
        job.result(_PATIENCE_S)
    assert list(job.events()) == []


def test_a_result_that_is_not_there_yet_can_be_waited_for_in_part() -> None:
    job = start(wait)
    try:
        with pytest.raises(TimeoutError):
            job.result(0.01)
    finally:
        job.cancel()
    with pytest.raises(CancelledError):
        job.result(_PATIENCE_S)


def test_an_event_loop_awaits_a_job() -> None:
    async def main() -> int:
        return await asyncio.wrap_future(start(count, 5).future)

    assert asyncio.run(main()) == 5


def test_a_slow_reader_costs_no_memory_without_end() -> None:
    job = start(count, 30_000)
    assert job.result(_PATIENCE_S) == 30_000
    assert len(list(job.events())) == 10_000


def test_whoever_cancels_the_future_gets_the_outcome_all_the_same() -> None:
    go_on = threading.Event()

    def work(*, run: Run | None = None) -> int:
        go_on.wait(_PATIENCE_S)
        return count(1, run=run)

    job = start(work)
    assert not job.future.cancel()
    assert not job.done
    go_on.set()
    assert job.result(_PATIENCE_S) == 1
    assert list(job.events()) == [PhaseStarted("counting", 1), PhaseAdvanced()]
