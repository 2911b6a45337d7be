"""Memory for the parts of archives that are on their way into a bucket."""

from __future__ import annotations

import mmap
import threading
import time
from collections import deque
from collections.abc import Callable

from mirror.run import Run

PART = 10 << 20
"""Bytes of a part at most, and twice what it has at least, in objects of up to 47 GiB."""
_LOOK_S = 0.5
_PATIENCE_S = 5.0
"""How long parts wait in memory, at least, for one before them that comes slowly."""


class PartMemory:
    """Memory that parts under way share, `most` bytes. Thread-safe.

    Some of it is for parts that are next to be hashed, so that they can be sent while the one
    behind them comes. Whoever waits for memory sends parts meanwhile.
    """

    def __init__(self, most: int, run: Run) -> None:
        self._most, self._run, self._held = most, run, 0
        self._ahead = most - max(PART, most // 2)
        self._spare: list[mmap.mmap] = []  # fresh memory costs as much as a copy
        self._ready: deque[Callable[[], None]] = deque()
        self._idle = self._came = 0
        self._mark = 0.0, 0  # when the rate was seen last, and what had come
        self._best = 0.0  # the highest rate so far, in bytes per second
        self._changed = threading.Condition()

    def take(
        self,
        size: int,
        urgent: Callable[[], bool],
        ahead: Callable[[], bool],
        too_slow: Callable[[], None],
    ) -> mmap.mmap:
        """Wait until there is memory for a part; what all others wait for is `urgent`.

        What is `ahead` of the hash does not get all of the room. `too_slow` is called if less than
        half as much comes as came once, since what is urgent comes slowly.
        """
        size, since = max(size, PART), None
        while True:
            work = None
            with self._changed:
                waits = ahead()
                most = self._ahead if waits else self._most
                fits = not self._held or self._held + size <= most
                if urgent() or (fits and not (waits and self._ready)):
                    return self._memory(size)
                if self._ready:
                    work, since = self._ready.popleft(), None
                else:
                    since = since or self._look()
                    self._idle += 1
                    self._changed.wait(_LOOK_S)
                    self._idle -= 1
                    waited, came = (new - old for new, old in zip(self._look(), since, strict=True))
            self._run.check()
            if work is not None:
                work()
            elif waited >= _PATIENCE_S and 2 * came < self._best * waited:
                too_slow()

    def _memory(self, size: int) -> mmap.mmap:
        self._held += size
        if not self._mark[0]:
            self._mark = time.monotonic(), self._came
        for place, one in enumerate(self._spare):
            if len(one) >= size:
                return self._spare.pop(place)
        return mmap.mmap(-1, size)

    def _look(self) -> tuple[float, int]:
        """The time, and how many bytes have come."""
        now, (then, before) = time.monotonic(), self._mark
        if now - then >= _LOOK_S:
            self._best = max(self._best, (self._came - before) / (now - then))
            self._mark = now, self._came
        return now, self._came

    def came(self, count: int) -> None:
        with self._changed:
            self._came += count

    def share(self, work: Callable[[], None]) -> None:
        """Let somebody do `work` who waits for memory; if nobody does, do it."""
        with self._changed:
            if self._idle > len(self._ready):
                self._ready.append(work)
                self._changed.notify_all()
                return
        work()

    def finish(self) -> None:
        """Do what nobody has done yet."""
        while self._ready:
            self._ready.popleft()()

    def give(self, data: mmap.mmap | None = None) -> None:
        """Take memory back; let those that wait look again."""
        with self._changed:
            if data is not None:
                self._held -= len(data)
                self._spare.append(data)
            self._changed.notify_all()
