"""The daemon: a thread per replica looks, waits, and looks again, until it is asked to stop.

Each replica has its own pace and back-off, so that one that hangs holds up no other.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from mirror.errors import CancelledError, MirrorError
from mirror.run import Run
from mirror.watch.metrics import Metrics
from mirror.watch.pace import Depth, Pace
from mirror.watch.state import Look, State

_log = logging.getLogger(__name__)

Cycle = Callable[[str, Depth, Run], Look]
"""(replica, depth, run) → what was found and done. It may raise `MirrorError`."""

_GATHER_S = 0.5
"""A push tells of each of its tags: what comes within this time is one reason to look."""

_CALM_S = 5.0
"""The same after a cycle that failed."""


class Daemon:
    """Runs `cycle` for every follower until `stop`; `wake` makes all look at once."""

    def __init__(
        self,
        followers: Iterable[str],
        cycle: Cycle,
        *,
        pace: Pace,
        this: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.followers = tuple(followers)
        self.state = State(self.followers, this)
        self.metrics = Metrics(self.followers)
        self._cycle, self._pace = cycle, pace
        self._clock, self._chance = clock, chance
        self._run = Run()
        self._woken = {name: threading.Event() for name in self.followers}
        self._threads = [
            threading.Thread(target=self._follow, args=(name,), name=f"watch-{name}")
            for name in self.followers
        ]

    def start(self) -> None:
        """Begin; the first look at each replica starts at once."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Look now, whatever the pace says: something was pushed."""
        for event in self._woken.values():
            event.set()

    def stop(self) -> None:
        """End: what is under way stops at the next chunk. On return no thread of ours runs."""
        self._run.cancellation.cancel()
        self.wake()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def alive(self) -> bool:
        """Whether every replica is being looked after: a thread that ended is a bug."""
        return all(thread.is_alive() for thread in self._threads)

    def _follow(self, replica: str) -> None:
        failures = 0
        complete: bool | None = None
        audited: float | None = None
        read: float | None = None
        woken = self._woken[replica]
        while not self._run.stopped:
            # Cleared before the look: what is pushed during it gets a look of its own.
            woken.clear()
            started = self._clock()
            depth = self._pace.depth(started, audited, read)
            try:
                look = self._cycle(replica, depth, Run.of(self._run))
            except CancelledError:
                continue
            except MirrorError as err:
                look = Look(depth, complete=False, errors=(str(err),))
            look = replace(look, duration_s=self._clock() - started)
            self.state.note(replica, look)
            self.metrics.record(replica, look, now_s=time.time())
            for error in look.errors:
                _log.warning("%s: %s", replica, error)
            # A peer's trouble is told, and is no reason to look after this replica less.
            if look.complete:
                failures = 0
                audited = started if depth is Depth.AUDIT else audited
                read = started if depth is Depth.DEEP else read
            else:
                failures += 1
            # Nothing new every ten seconds would bury what is.
            news = look.complete != complete or look.sent or depth is not Depth.STATEMENT
            complete = look.complete
            _log.log(
                logging.INFO if news else logging.DEBUG,
                "%s: %s after %s, %d bytes sent",
                replica,
                "complete" if look.complete else "not complete",
                depth,
                look.sent,
            )
            if woken.wait(self._pace.delay(failures, self._chance())):
                # What half a sync pushes is told of, too: trouble must not feed itself.
                self._run.cancellation.wait(_CALM_S if failures else _GATHER_S)
