"""Waiting in tests, without a guess at how fast the machine is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 60.0
"""Longer than anything takes on a busy machine that is going to happen at all."""


def wait_until(condition: Callable[[], object], *, every_s: float = 0.005) -> None:
    """Wait until `condition` holds; fail if it never does. It is asked again after `every_s`."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "that never happened"
        time.sleep(every_s)


@contextmanager
def without_waiting(seconds: float) -> Iterator[None]:
    """Fail if the block takes as long as a wait of `seconds` which it must not sit out."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds, "it waited"


_TICK_S = 0.01


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """Fail if the block takes longer, by a clock that slows down with the machine.

    The clock is a thread that counts its own short sleeps. Where threads wait for a processor, or
    for the interpreter's lock, each of its ticks takes longer, as each step of the block does. On a
    quiet machine it goes as any other clock. A wait of a fixed length counts in full there.
    """
    over = threading.Event()
    ticks = 0

    def count() -> None:
        nonlocal ticks
        while not over.is_set():
            time.sleep(_TICK_S)
            ticks += 1

    clock = threading.Thread(target=count, name="clock")
    clock.start()
    try:
        yield
    finally:
        over.set()
        clock.join()
    assert ticks * _TICK_S < seconds, f"it took {ticks * _TICK_S:.2f} s"


@contextmanager
def another_process_ends_within(seconds: float) -> Iterator[None]:
    """Fail if the block, which waits for another process, takes longer than that by its share.

    The clock is the processor time of a thread that never rests: what a process gets that never
    does. On a quiet machine it goes as any other clock.
    """
    over = threading.Event()
    took_s = 0.0

    def count() -> None:
        nonlocal took_s
        while not over.is_set():
            pass
        took_s = time.thread_time()

    clock = threading.Thread(target=count, name="clock")
    clock.start()
    try:
        yield
    finally:
        over.set()
        clock.join()
    assert took_s < seconds, f"it took {took_s:.2f} s"
