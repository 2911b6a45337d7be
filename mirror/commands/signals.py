"""Ctrl-C and SIGTERM while a command works."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
MESSAGE = "interrupted; run the same command again"
_PATIENCE_S = 1.5


@contextmanager
def stopping(tell: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end the work; `_PATIENCE_S` later, or the second time, the process too.

    A signal raises KeyboardInterrupt in the main thread, which cancels the run of the operation and
    waits for its threads. If that takes longer than `_PATIENCE_S`, or a second signal comes, `tell`
    reports the interruption and the process ends at once. Nothing is lost by that: every command
    can be stopped anywhere and run again.

    Yields a function that says whether a signal has come. KeyboardInterrupt may strike anywhere,
    also inside a lock of the standard library, which then raises its own complaint ("release
    unlocked lock"): whatever is raised after a signal is a consequence of it.
    """

    def give_up() -> None:
        tell()
        os._exit(INTERRUPTED)

    timer = threading.Timer(_PATIENCE_S, give_up)
    timer.daemon = True

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        if timer.ident is not None:
            give_up()
        timer.start()
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as `nohup` and shells have it for background jobs
            signal.signal(number, interrupt)
    try:
        yield lambda: timer.ident is not None
    finally:
        # The timer goes on: threads that were left behind would hold up the end of the process.
        for number, handler in before.items():
            signal.signal(number, handler)
