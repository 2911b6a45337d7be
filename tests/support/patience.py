"""Waiting in tests, without a guess at how fast the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_S = 60.0
"""Longer than anything takes on a busy machine that is going to happen at all."""


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until `condition` holds; fail if it never does."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "that never happened"
        time.sleep(0.005)


@contextmanager
def without_waiting(seconds: float) -> Iterator[None]:
    """Fail if the block takes as long as a wait of `seconds` which it must not sit out."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds, "it waited"
