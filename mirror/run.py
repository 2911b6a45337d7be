"""How work is done: its width, its listener, and when it has to stop.

An operation makes one `Run` and hands it down. Everything that waits, sleeps or loops asks it
whether to go on, so cancelling takes effect at once, on the wire too.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from mirror.errors import CancelledError, DeadlineError
from mirror.events import OnEvent, ignore

DEFAULT_JOBS = 8
"""Threads for work that waits for networks and disks; hashing and sockets release the GIL."""


class Cancellation:
    """A request to stop, seen by everything that one operation does. Thread-safe.

    A child is cancelled with its parent. Cancelling a child leaves its parent alone, so a library
    call never cancels what belongs to its caller.
    """

    def __init__(self, parent: Cancellation | None = None) -> None:
        self._condition = threading.Condition()  # guards the next four
        self._requested = False
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._keys = itertools.count()
        # Weak: a parent that lives as long as a daemon keeps no child that nobody waits on.
        self._children: weakref.WeakSet[Cancellation] = weakref.WeakSet()
        self._parent = parent
        if parent is not None and not parent._adopt(self):
            self._requested = True

    @property
    def requested(self) -> bool:
        """Whether somebody asked to stop."""
        return self._requested

    def cancel(self) -> None:
        """Ask to stop. Later calls do nothing."""
        with self._condition:
            if self._requested:
                return
            self._requested = True
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
            children = list(self._children)
            self._condition.notify_all()
        for child in children:
            child.cancel()
        for callback in callbacks:
            callback()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until somebody asks to stop, at most `timeout_s` seconds; return `requested`."""
        with self._condition:
            return self._condition.wait_for(lambda: self._requested, timeout_s)

    def detach(self) -> None:
        """Forget the parent: its cancellation no longer reaches this child."""
        if self._parent is not None:
            with self._parent._condition:
                self._parent._children.discard(self)
            self._parent = None

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` once, from the cancelling thread, if the request comes within the block.

        A request that came before calls it at once. `callback` must be short and raise nothing.
        """
        forget = self._call_when_requested(callback)
        try:
            yield
        finally:
            forget()

    def _adopt(self, child: Cancellation) -> bool:
        """Take `child` among those that are cancelled with this; False if it comes too late."""
        with self._condition:
            self._children.add(child)
            return not self._requested

    def _call_when_requested(self, callback: Callable[[], None]) -> Callable[[], None]:
        with self._condition:
            if not self._requested:
                key = next(self._keys)
                self._callbacks[key] = callback
                return lambda: self._remove(key)
        callback()
        return lambda: None

    def _remove(self, key: int) -> None:
        with self._condition:
            self._callbacks.pop(key, None)


@dataclass(frozen=True, slots=True)
class Run:
    """How one operation works.

    Attributes:
        jobs: the most threads that work at once (1 or more).
        on_event: hears what happens, from whichever thread did it.
        cancellation: the caller's means to stop the operation.
        deadline: the moment of `time.monotonic()` at which the operation gives up; None for never.

    Raises:
        ValueError: `jobs` is not positive.
    """

    jobs: int = DEFAULT_JOBS
    on_event: OnEvent = ignore
    cancellation: Cancellation = field(default_factory=Cancellation)
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError("jobs must be at least 1")

    @classmethod
    def of(cls, run: Run | None) -> Run:
        """An operation's own run, cancelled with its caller's `run`.

        An operation that a bug or Ctrl-C ends cancels its own run, so that its threads end at once;
        the caller's stays as it is.
        """
        return cls() if run is None else replace(run, cancellation=Cancellation(run.cancellation))

    def with_jobs(self, jobs: int) -> Run:
        """The same run in at most `jobs` threads."""
        return replace(self, jobs=jobs)

    def heard_by(self, on_event: OnEvent) -> Run:
        """The same run, of which `on_event` hears."""
        return replace(self, on_event=on_event)

    def quietly(self) -> Run:
        """The same run, of which nobody hears."""
        return self.heard_by(ignore)

    @property
    def stopped(self) -> bool:
        """Whether nothing new should begin."""
        return self.cancellation.requested or self.remaining_s() == 0

    def remaining_s(self) -> float | None:
        """Seconds until the deadline, never negative; None where there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def check(self, where: str = "") -> None:
        """Return if the work may go on. `where` is what the error says was stopped.

        Raises:
            CancelledError: somebody asked to stop.
            DeadlineError: the deadline has passed.
        """
        prefix = f"{where}: " if where else ""
        if self.cancellation.requested:
            raise CancelledError(f"{prefix}stopped on request")
        if self.remaining_s() == 0:
            raise DeadlineError(f"{prefix}stopped, the time that was given is over")

    def sleep(self, seconds: float) -> None:
        """Wait `seconds`; a cancellation or the deadline ends the wait at once.

        Raises:
            CancelledError, DeadlineError: as `check`.
        """
        remaining = self.remaining_s()
        self.cancellation.wait(seconds if remaining is None else min(seconds, remaining))
        self.check()

    def with_deadline(self, seconds: float | None) -> Run:
        """The same run, which gives up `seconds` from now at the latest."""
        if seconds is None:
            return self
        moment = time.monotonic() + seconds
        return replace(
            self, deadline=moment if self.deadline is None else min(self.deadline, moment)
        )

    @contextmanager
    def child(self, *, jobs: int | None = None, on_event: OnEvent | None = None) -> Iterator[Run]:
        """A run for a part of the work, with a cancellation of its own.

        It is cancelled with this one, and when an exception leaves the block, so no thread of that
        part outlives its caller. This run's own cancellation is never touched.
        """
        part = replace(Run.of(self), jobs=jobs or self.jobs, on_event=on_event or self.on_event)
        try:
            yield part
        except BaseException:
            part.cancellation.cancel()
            raise
        finally:
            part.cancellation.detach()
