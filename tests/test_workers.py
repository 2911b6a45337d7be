from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from mirror.errors import (
    CancelledError,
    DeadlineError,
    DeniedError,
    MirrorError,
    NoSpaceError,
    NotFoundError,
    UnreachableError,
)
from mirror.run import DEFAULT_JOBS, WIDEST, Run, Width, for_each, gather

_PATIENCE_S = 20.0
"""Longer than any machine takes; only a test that fails waits for it."""


def ours() -> list[str]:
    """Worker threads that are running now."""
    return [one.name for one in threading.enumerate() if one.name.startswith("mirror_")]


@pytest.fixture(autouse=True)
def _no_thread_outlives_its_caller() -> Iterator[None]:
    assert ours() == []
    yield
    assert ours() == []


def test_results_come_in_the_order_of_the_items() -> None:
    turn = [threading.Event() for _ in range(5)]
    turn[4].set()

    def work(number: int) -> int:
        # The last item is done first: each waits for the one behind it.
        assert turn[number].wait(_PATIENCE_S)
        if number:
            turn[number - 1].set()
        return number * number

    assert gather(range(5), work, run=Run(5)) == [0, 1, 4, 9, 16]
    assert gather([], work, run=Run()) == []


def test_each_item_is_worked_on_once_by_at_most_so_many_threads() -> None:
    lock = threading.Lock()
    busy, most, seen = 0, 0, []

    def work(number: int) -> None:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
            seen.append(number)
        with lock:
            busy -= 1

    outcomes = list(for_each(range(500), work, run=Run(3)))
    assert sorted(number for number, _ in outcomes) == sorted(seen) == list(range(500))
    assert most <= 3


def test_a_long_list_is_not_read_ahead_of_the_work() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while taken < 100_000:
            taken += 1
            yield taken

    done = for_each(items(), lambda number: number, run=Run(2))
    for _ in range(3):
        next(done)
    assert taken <= 10
    done.close()


def test_a_failure_belongs_to_its_item_and_siblings_carry_on() -> None:
    def work(number: int) -> int:
        if number % 2:
            raise NotFoundError(f"{number} is not there")
        return number

    outcomes = dict(for_each(range(10), work, run=Run(2)))
    assert len(outcomes) == 10
    assert {n for n, one in outcomes.items() if isinstance(one, NotFoundError)} == {1, 3, 5, 7, 9}
    with pytest.raises(NotFoundError, match=r"^1 is not there$"):
        gather(range(10), work, run=Run(2))


@pytest.mark.parametrize(
    "error",
    [
        DeniedError("no", where="GET x"),
        UnreachableError("no", where="GET x"),
        NoSpaceError("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failure_that_would_only_repeat_itself_lets_nothing_new_begin(
    error: MirrorError,
) -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 0:
            raise error
        return number

    run = Run(1)
    outcomes = dict(for_each(range(1000), work, run=run))
    assert outcomes == {0: error}
    assert begun == [0]  # what was queued behind it, too, does not begin
    assert not run.stopped


def test_a_bug_stops_the_rest_and_is_raised() -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 3:
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        gather(range(1000), work, run=Run(2))
    assert len(begun) < 1000


def test_a_bug_wakes_those_who_are_waiting() -> None:
    run = Run(4)

    def work(number: int) -> bool:
        if number == 0:
            raise ValueError("a bug")
        return run.cancellation.wait(_PATIENCE_S)  # as whatever waits does

    with pytest.raises(ValueError, match="a bug"):
        gather(range(4), work, run=run)


def test_a_bug_is_raised_and_not_what_it_did_to_the_others() -> None:
    run, others = Run(4), threading.Barrier(4)

    def work(number: int) -> None:
        others.wait(_PATIENCE_S)
        if number == 3:
            raise ValueError("a bug")
        run.sleep(_PATIENCE_S)

    with pytest.raises(ValueError, match="a bug"):
        gather(range(4), work, run=run)


def test_a_bug_leaves_the_run_of_the_caller_alone() -> None:
    callers = Run(4)
    own = Run.of(callers)

    def work(number: int) -> None:
        if number == 0:
            raise ValueError("a bug")
        own.sleep(_PATIENCE_S)

    with pytest.raises(ValueError, match="a bug"):
        gather(range(4), work, run=own)
    callers.check()


def test_a_deadline_lets_nothing_new_begin() -> None:
    run = Run(2).with_deadline(0.05)
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        run.sleep(_PATIENCE_S)

    with pytest.raises(DeadlineError, match="the time that was given is over"):
        gather(range(100), work, run=run)
    assert begun == [0, 1]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_the_caller_leaves_no_thread_running(
    interrupt: type[BaseException],
) -> None:
    run = Run(4)

    def caller() -> None:
        def work(number: int) -> bool:
            return number == 0 or run.cancellation.wait(_PATIENCE_S)

        for _ in for_each(range(8), work, run=run):
            raise interrupt  # while the others are at work

    with pytest.raises(interrupt):
        caller()
    assert run.cancellation.requested


def test_an_interrupt_in_a_worker_is_raised_in_the_caller() -> None:
    def work(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather(range(100), work, run=Run(2))


def test_cancellation_lets_nothing_new_begin_and_is_told() -> None:
    run = Run(2)
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 5:
            run.cancellation.cancel()

    with pytest.raises(CancelledError, match="stopped on request"):
        gather(range(1000), work, run=run)
    assert len(begun) <= 7  # beside the one that asked for it one more was at work


def test_what_was_cancelled_before_does_not_begin() -> None:
    run = Run()
    run.cancellation.cancel()
    begun: list[int] = []
    with pytest.raises(CancelledError, match="stopped on request"):
        gather(range(5), begun.append, run=run)
    assert begun == []


def test_work_that_says_it_was_cancelled_ends_all_of_it() -> None:
    def work(number: int) -> None:
        raise CancelledError("the client was closed")

    with pytest.raises(CancelledError, match="the client was closed"):
        gather(range(5), work, run=Run(2))


def test_no_threads_cannot_do_any_work() -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1"):
        gather([1], lambda number: number, run=Run(0))


def test_where_no_thread_can_be_started_the_caller_works_by_the_same_rules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    test_each_item_is_worked_on_once_by_at_most_so_many_threads()
    test_a_long_list_is_not_read_ahead_of_the_work()
    test_a_failure_belongs_to_its_item_and_siblings_carry_on()
    test_a_failure_that_would_only_repeat_itself_lets_nothing_new_begin(NoSpaceError("no"))
    test_a_bug_stops_the_rest_and_is_raised()
    test_a_bug_leaves_the_run_of_the_caller_alone()
    test_an_interrupt_in_a_worker_is_raised_in_the_caller()
    test_cancellation_lets_nothing_new_begin_and_is_told()
    test_what_was_cancelled_before_does_not_begin()
    test_work_that_says_it_was_cancelled_ends_all_of_it()


# -- more threads where the way is long ------------------------------------------------------------


def heard(width: Width, *latencies_s: float, at_once: int = WIDEST, host: str = "far") -> int:
    """What a width bears after answers of one host."""
    for after_s in latencies_s:
        width.hear(host, after_s, at_once)
    return width.bears


def test_a_host_far_away_bears_more_with_each_answer_that_is_as_soon_as_the_first() -> None:
    assert heard(Width(), *[0.040, 0.042, 0.050] * 5) == DEFAULT_JOBS + 15
    assert heard(Width(), *[0.040] * 500) == WIDEST


def test_a_host_nearby_gets_no_more_and_one_that_answers_later_gets_less() -> None:
    assert heard(Width(), *[0.001] * 100) == DEFAULT_JOBS
    width = Width()
    heard(width, *[0.040] * 100)
    assert heard(width, *[0.070] * 20) == WIDEST, "that is late enough for no more"
    assert heard(width, *[0.2] * 20) < WIDEST
    assert heard(width, *[0.2] * 100) == DEFAULT_JOBS
    busy = Width()
    busy.bears = 20
    assert heard(busy, 0.001, *[0.030] * 50, host="near") == DEFAULT_JOBS


def test_a_way_that_varies_is_long_all_the_same() -> None:
    answers = random.Random(7).choices([0.03, 0.04, 0.05, 0.09], k=400)
    assert heard(Width(), *answers) > 40


def test_nothing_is_learnt_from_one_request_at_a_time() -> None:
    assert heard(Width(), *[0.040] * 100, at_once=3) == DEFAULT_JOBS


def test_threads_join_the_work_as_soon_as_hosts_bear_more() -> None:
    run, together = Run(2, widest=5), threading.Barrier(5)

    def work(number: int) -> int:
        if number < 2:
            run.width.bears = 64  # what the views of a run share
        else:
            together.wait(_PATIENCE_S)
        return number

    with_it = run.quietly()
    assert gather(range(12), work, run=with_it) == list(range(12))
    assert (with_it.threads, with_it.with_jobs(3).threads, Run(2).threads) == (5, 3, 2)


def test_threads_of_wide_work_begin_no_wide_work() -> None:
    run = Run(2, widest=5)
    run.width.bears = 5
    counts: list[int] = []
    more = threading.Barrier(3)  # one more than may be there

    def inner(_number: int) -> None:
        counts.append(len(ours()))
        with suppress(threading.BrokenBarrierError):
            more.wait(0.05)

    def outer(_number: int) -> None:
        gather(range(5), inner, run=run)

    gather([0], outer, run=run)
    assert max(counts) <= 3, "one outer and two inner ones"
