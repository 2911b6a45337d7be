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
def handling(handle: Callable[[], None], *, once: bool = False) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `handle`; with `once` the second one acts as it did before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def called(_number: int, _frame: FrameType | None) -> None:
        if once:
            restore()
        handle()

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as `nohup` and shells have it for background jobs
            signal.signal(number, called)
    try:
        yield
    finally:
        restore()


@contextmanager
def stopping(report: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end the work; `_PATIENCE_S` later, or the second time, the process too.

    A signal raises KeyboardInterrupt in the main thread, which cancels the run of the operation and
    waits for its threads. If that takes longer than `_PATIENCE_S`, or a second signal comes,
    `report` is called and the process ends at once. Nothing is lost by that: every command can be
    stopped anywhere and run again.

    Yields a function that says whether a signal has come. KeyboardInterrupt may strike anywhere,
    also inside a lock of the standard library, which then raises its own complaint ("release
    unlocked lock"): whatever is raised after a signal is a consequence of it.
    """

    def give_up() -> None:
        report()
        os._exit(INTERRUPTED)

    timer = threading.Timer(_PATIENCE_S, give_up)
    timer.daemon = True

    def interrupt() -> None:
        if timer.ident is not None:
            give_up()
        timer.start()
        raise KeyboardInterrupt

    with handling(interrupt):
        yield lambda: timer.ident is not None
    # The timer goes on: threads that were left behind would hold up the end of the process.
