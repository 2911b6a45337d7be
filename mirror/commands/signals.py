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

    They raise KeyboardInterrupt; `tell` says so where nobody is left to catch it. The work waits
    for its threads, and one of those may wait for a registry that has fallen silent. Nothing is
    lost without them: every command can be stopped anywhere and run again.

    What is yielded says whether the end was asked for. KeyboardInterrupt may strike anywhere, also
    inside a lock of the standard library, which then complains in its place ("release unlocked
    lock"): what is raised afterwards came of the request.
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
