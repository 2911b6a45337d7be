"""`Run`: how work is done, and how it stops."""

from __future__ import annotations

import gc
import re
import threading
import time
import weakref
from pathlib import Path

import pytest

import mirror
from mirror.errors import CancelledError, DeadlineError
from mirror.run import Cancellation, Run


def test_a_sleep_ends_as_soon_as_somebody_cancels() -> None:
    run = Run()
    threading.Timer(0.05, run.cancellation.cancel).start()
    with pytest.raises(CancelledError, match="stopped on request"):
        run.sleep(120)


def test_a_sleep_ends_at_the_deadline() -> None:
    run = Run().with_deadline(0.05)
    with pytest.raises(DeadlineError, match="the time that was given is over"):
        run.sleep(120)
    assert run.stopped
    assert run.remaining_s() == 0


def test_a_deadline_is_never_moved_back() -> None:
    run = Run().with_deadline(10)
    assert run.with_deadline(1000).deadline == run.deadline
    assert run.with_deadline(None) == run
    nearer = run.with_deadline(1).deadline
    assert nearer is not None
    assert nearer < time.monotonic() + 2


def test_a_child_is_cancelled_with_its_parent() -> None:
    run = Run()
    with run.child() as child:
        run.cancellation.cancel()
        assert child.stopped


def test_a_child_never_cancels_its_parent() -> None:
    run = Run()
    with pytest.raises(ZeroDivisionError), run.child() as child:
        raise ZeroDivisionError
    assert child.stopped
    assert not run.stopped
    run.check()


def test_a_finished_child_no_longer_hears_its_parent() -> None:
    run = Run()
    with run.child(jobs=2) as child:
        pass
    run.cancellation.cancel()
    assert not child.cancellation.requested
    assert child.jobs == 2


def test_a_callback_is_called_once_and_only_within_its_block() -> None:
    calls: list[str] = []
    cancellation = Cancellation()
    with cancellation.calling(lambda: calls.append("left")):
        pass
    with cancellation.calling(lambda: calls.append("within")):
        cancellation.cancel()
        cancellation.cancel()
    with cancellation.calling(lambda: calls.append("late")):
        pass
    assert calls == ["within", "late"]


def test_a_run_needs_a_thread() -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1"):
        Run(jobs=0)


def test_an_operations_own_run_is_cancelled_with_its_callers() -> None:
    callers = Run()
    own = Run.of(callers)
    grandchild = Run.of(own)
    callers.cancellation.cancel()
    assert own.stopped
    assert grandchild.stopped
    assert Run.of(callers).stopped  # one that begins later, too


def test_an_operation_that_ends_early_leaves_its_callers_run_alone() -> None:
    callers = Run()
    Run.of(callers).cancellation.cancel()
    callers.check()
    assert not Run.of(None).stopped


def test_a_run_that_is_over_leaves_nothing_behind_at_its_callers() -> None:
    callers = Run()
    ended = weakref.ref(Run.of(callers).cancellation)
    gc.collect()
    assert ended() is None


def test_a_run_says_where_it_was_stopped() -> None:
    run = Run()
    run.cancellation.cancel()
    with pytest.raises(CancelledError, match=r"^the leader: stopped on request$"):
        run.check("the leader")


def test_no_wait_and_no_lifetime_asks_the_clock_on_the_wall() -> None:
    """That clock jumps; what a jump may change is named here."""
    package = Path(mirror.__file__).parent
    asking = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if path.parent.name != "testing"
        and re.search(r"\btime\.time\(|datetime\.now\(", path.read_text(encoding="utf-8"))
    }
    assert asking == {
        "commands/mode_render.py",  # certificates begin and end by it
        "controller/cluster.py",  # certificates, and when a condition changed
        "controller/leading.py",  # a Lease tells people when it was renewed
        "operations/shards.py",  # when a share of a bundle was read, which people read
        "registry/retries.py",  # a date in Retry-After, whose wait has an upper bound
        "reports/messages.py",  # when a message was told
        "sync/publication_state.py",  # when a generation was reached, which people read
        "watch/daemon.py",  # a metric that is such a time
        "watch/fleet.py",  # the time of day in which something new is carried
    }
