"""How work is done: its threads, its listener, and when it has to stop.

An operation makes one `Run` and hands it down. Everything that waits, sleeps or loops asks it
whether to go on, so cancelling takes effect at once, on the wire too.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from operator import length_hint
from queue import SimpleQueue
from typing import TypeVar

from mirror.errors import (
    CancelledError,
    DeadlineError,
    DeniedError,
    FileSystemError,
    MirrorError,
    NoSpaceError,
    UnreachableError,
)
from mirror.events import ArchiveDone, OnEvent, ignore

DEFAULT_JOBS = 8
"""Threads for work that waits for networks and disks; hashing and sockets release the GIL."""
WIDEST = 64
"""Threads for small requests to hosts far away."""
_NEAR_S, _SOON, _LATE = 0.005, 1.5, 2.0
"""Answers within this say nothing of a way; and how much later than at best answers may come."""


class Width:
    """How many requests at once have been answered about as soon as few: `bears`.

    Where the way takes the time and not the host, more at once cost nobody anything: while answers
    usually come nearly as soon as they did at best, each of them lets `bears` grow, up to `WIDEST`.
    It shrinks while they come late. Updates that threads take from each other matter to nobody.
    """

    def __init__(self) -> None:
        self.bears = DEFAULT_JOBS
        self._heard: dict[str, tuple[float, float]] = {}  # by host: usual at best, and usual now

    def hear(self, host: str, after_s: float, at_once: int) -> None:
        """A small request was answered after so long, one of so many under way."""
        best_s, usual_s = self._heard.get(host, (after_s, after_s))
        usual_s += (after_s - usual_s) * 0.2
        best_s = min(usual_s, best_s * 1.001)  # a way may become longer
        self._heard[host] = best_s, usual_s
        if usual_s > _LATE * max(best_s, _NEAR_S):
            self.bears = max(DEFAULT_JOBS, self.bears - 1)
        elif best_s > _NEAR_S and usual_s < _SOON * best_s and 2 * at_once >= self.bears:
            self.bears = min(WIDEST, self.bears + 1)


class Cancellation:
    """A request to stop, seen by everything that one operation does. Thread-safe.

    A child is cancelled with its parent. Cancelling a child leaves its parent alone, so a library
    call never cancels what belongs to its caller.
    """

    def __init__(self, parent: Cancellation | None = None) -> None:
        self._condition = threading.Condition()  # guards the next three
        self._requested = False
        self._callbacks: dict[object, Callable[[], None]] = {}
        # Weak: a parent that lives as long as a daemon keeps no child that nobody waits on.
        self._children: weakref.WeakSet[Cancellation] = weakref.WeakSet()
        self._parent = parent
        if parent is not None:
            with parent._condition:
                parent._children.add(self)
                self._requested = parent._requested

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
        key = object()
        with self._condition:
            came_before = self._requested
            if not came_before:
                self._callbacks[key] = callback
        if came_before:
            callback()
        try:
            yield
        finally:
            with self._condition:
                self._callbacks.pop(key, None)


@dataclass(frozen=True, slots=True)
class Run:
    """How one operation works.

    Attributes:
        jobs: how many threads work at once (1 or more); large blobs move in no more.
        widest: up to how many do, where `width` says that hosts far away bear them.
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
    widest: int = 0
    width: Width = field(default_factory=Width, repr=False, compare=False)

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
        return replace(self, jobs=jobs, widest=0)

    @property
    def threads(self) -> int:
        """How many threads work at once now."""
        return max(self.jobs, min(self.widest, self.width.bears))

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
    def child(self, *, jobs: int | None = None) -> Iterator[Run]:
        """A run for a part of the work, with a cancellation of its own.

        It is cancelled with this one, and when an exception leaves the block, so no thread of that
        part outlives its caller. This run's own cancellation is never touched.
        """
        part = Run.of(self) if jobs is None else Run.of(self).with_jobs(jobs)
        try:
            yield part
        except BaseException:
            part.cancellation.cancel()
            raise
        finally:
            part.cancellation.detach()


# -- work in several threads ----------------------------------------------------------------------

Item = TypeVar("Item")
Result = TypeVar("Result")

_here = threading.local()

_HOPELESS = (DeniedError, UnreachableError, NoSpaceError, FileSystemError)
"""Failures that the items behind would only repeat, each after its own retries."""


def for_each(
    items: Iterable[Item], work: Callable[[Item], Result], *, run: Run
) -> Generator[tuple[Item, Result | MirrorError], None, None]:
    """Do `work` on every item in `run.threads`; yield each with its result or its failure.

    Where the system starts fewer threads those do it, and where it starts none the caller's does.
    The order is that of completion. A `MirrorError` belongs to its item and the others carry on,
    unless the next item would only repeat it (denied, unreachable, disk): then items that have not
    begun are left out. Any other exception stops the rest and is raised. On return no thread of
    ours is running.

    Close it (`contextlib.closing`), so that an exception in the loop over it, Ctrl-C for one, ends
    the threads at once and not when the generator is collected.

    `work` asks `run` in its waits and long loops. What ends all of the work early cancels `run`,
    which is therefore the operation's own (`Run.of`) and not its caller's.

    Raises:
        CancelledError: `run` was stopped from outside, or an item says that it was.
    """
    queue, turn = iter(items), threading.Lock()
    over, room = threading.Event(), threading.Event()
    # Of each thread: (item, outcome) pairs, then the exception that ended it, or None.
    outcomes: SimpleQueue[tuple[Item, Result | MirrorError] | BaseException | None] = SimpleQueue()

    # Threads that wide work has begun begin no wide work: there would be thousands.
    wide = not getattr(_here, "is_wide", False)

    def most() -> int:
        return run.threads if wide else run.jobs

    def outcome_of(item: Item) -> Result | MirrorError:
        try:
            return work(item)
        except CancelledError:
            raise
        except MirrorError as err:
            if isinstance(err, _HOPELESS):
                over.set()
            return err

    def labour() -> None:
        _here.is_wide = run.widest > 0 or not wide
        try:
            while not (over.is_set() or run.stopped):
                if outcomes.qsize() >= 2 * most():  # the caller is slower, so wait for it
                    room.clear()
                    if outcomes.qsize() < 2 * most() or over.is_set():
                        room.set()
                    room.wait()
                    continue
                with turn:
                    try:
                        item = next(queue)
                    except StopIteration:
                        break
                outcomes.put((item, outcome_of(item)))
        except BaseException as err:  # noqa: BLE001 - the caller raises it
            over.set()
            run.cancellation.cancel()  # wakes those that wait
            outcomes.put(err)
        else:
            outcomes.put(None)

    count = length_hint(items, max(run.jobs, WIDEST))
    threads: list[threading.Thread] = []
    stop: CancelledError | None = None

    def begin() -> int:
        """Start the threads that are due; return how many were."""
        nonlocal count
        before = len(threads)
        while len(threads) < min(most(), count):
            threads.append(threading.Thread(target=labour, name=f"mirror_{len(threads)}"))
            try:
                threads[-1].start()
            except RuntimeError:
                threads.pop()  # the system allows no more
                count = len(threads)
        return len(threads) - before

    try:
        begin()
        for item in () if threads else queue:
            if over.is_set() or run.stopped:
                break
            yield item, outcome_of(item)
        left = len(threads)
        while left:
            ended = outcomes.get()
            if not room.is_set():
                room.set()
            match ended:
                case (item, outcome):
                    left += begin()
                    yield item, outcome
                    continue
                case CancelledError() as err:
                    stop = stop or err
                case BaseException() as err:
                    raise err
            left -= 1
    except BaseException:
        run.cancellation.cancel()  # a bug, or Ctrl-C in the caller
        raise
    finally:
        over.set()
        room.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if stop is not None:
        raise stop
    run.check()


def gather(items: Iterable[Item], work: Callable[[Item], Result], *, run: Run) -> list[Result]:
    """The results of `work` on every item, in the items' order; the first failure is raised."""
    numbered = list(enumerate(items))
    results: dict[int, Result] = {}
    failures: dict[int, MirrorError] = {}
    with closing(for_each(numbered, lambda pair: work(pair[1]), run=run)) as outcomes:
        for (number, _), outcome in outcomes:
            if isinstance(outcome, MirrorError):
                failures[number] = outcome
            else:
                results[number] = outcome
    if failures:
        raise failures[min(failures)]
    return [results[number] for number, _ in numbered]


class ArchiveTally:
    """Counts what is left to do of each archive, and tells `listener` of one that is through.

    It tells nothing where there is one archive only. Thread-safe.
    """

    def __init__(self, listener: OnEvent) -> None:
        self._listener, self._lock = listener, threading.Lock()
        self._left, self._sizes = Counter[str](), Counter[str]()  # under the lock
        self._through = 0

    def expect(self, archive: str, size: int = 0) -> None:
        """Note one thing more to do of `archive`, of `size` bytes."""
        with self._lock:
            self._left[archive] += 1
            self._sizes[archive] += size

    def done(self, archive: str) -> None:
        """Note that one of them is done; an unknown archive is ignored."""
        with self._lock:
            self._left[archive] -= 1
            if not self._left[archive]:
                self._through += 1
                size, total = self._sizes[archive], len(self._sizes)
                if total > 1:
                    self._listener(ArchiveDone(archive, size, self._through, total))
