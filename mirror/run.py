"""How work is done: its threads, its listener, and when it has to stop.

An operation makes one `Run` and hands it down. Everything that waits, sleeps or loops asks it
whether to go on, so cancelling takes effect at once, on the wire too.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from operator import length_hint
from queue import SimpleQueue
from typing import TypeVar, cast

from mirror.errors import (
    CancelledError,
    DeadlineError,
    DeniedError,
    FileSystemError,
    MirrorError,
    NoSpaceError,
    UnreachableError,
)
from mirror.events import ArchiveDone, OnEvent, PhaseAdvanced, PhaseStarted, ignore

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
    def child(self, *, jobs: int | None = None) -> Iterator[Run]:
        """A run for a part of the work, with a cancellation of its own.

        It is cancelled with this one, and when an exception leaves the block, so no thread of that
        part outlives its caller. This run's own cancellation is never touched.
        """
        part = replace(Run.of(self), jobs=jobs or self.jobs)
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

_HOPELESS = (DeniedError, UnreachableError, NoSpaceError, FileSystemError)
"""Failures that the items behind would only repeat, each after its own retries."""


def for_each(
    items: Iterable[Item], work: Callable[[Item], Result], *, run: Run
) -> Generator[tuple[Item, Result | MirrorError], None, None]:
    """Do `work` on every item in `run.jobs` threads; yield each with its result or its failure.

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
        try:
            while not (over.is_set() or run.stopped):
                if outcomes.qsize() >= 2 * run.jobs:  # the caller is slower, so wait for it
                    room.clear()
                    if outcomes.qsize() < 2 * run.jobs or over.is_set():
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

    count = min(run.jobs, length_hint(items, run.jobs))
    threads: list[threading.Thread] = []
    stop: CancelledError | None = None
    try:
        for n in range(count):
            threads.append(threading.Thread(target=labour, name=f"mirror_{n}"))
            try:
                threads[-1].start()
            except RuntimeError:
                threads.pop()  # the system allows no more
                break
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


_REFUSALS = 32
"""After this many refusals without a good answer, the registry is at fault and not the items."""


class PerItemErrors:
    """Asks one registry about many items. Thread-safe.

    An error that belongs to its item is returned as a value. One that the next item would only
    repeat is raised: the registry does not answer `ping` either, or refuses everything.
    `asked` counts the questions.
    """

    def __init__(self, ping: Callable[[], None], run: Run) -> None:
        self._ping, self._run = ping, run
        self._lock = threading.Lock()  # guards the next two
        self._refused = 0
        self.asked = 0
        self._answered = False  # only ever set, so it needs no lock

    def ask(self, question: Callable[[], Result]) -> Result | MirrorError:
        """The answer, or the error that belongs to this question alone.

        Raises:
            UnreachableError, DeniedError: of the registry as a whole.
            CancelledError: the run was stopped.
        """
        with self._lock:
            self.asked += 1
        return self._ask(lambda _: question(), None)

    def ask_all(
        self, items: Sequence[Item], question: Callable[[Item], Result], *, title: str | None = None
    ) -> list[Result | MirrorError]:
        """`ask` about every item, in `run.jobs` threads; the answers are in the items' order.

        With a `title` the questions are reported as a phase of this name.
        """
        if not items:
            return []
        with self._lock:
            self.asked += len(items)
        on_event = self._run.on_event
        if title is not None:
            on_event(PhaseStarted(title, len(items)))
        answers: list[Result | MirrorError | None] = [None] * len(items)

        def ask(number: int) -> None:
            answers[number] = self._ask(question, items[number])
            if title is not None:
                on_event(PhaseAdvanced())

        gather(range(len(items)), ask, run=self._run)
        return cast("list[Result | MirrorError]", answers)

    def _ask(self, question: Callable[[Item], Result], item: Item) -> Result | MirrorError:
        try:
            answer = question(item)
        except CancelledError:
            raise
        except UnreachableError as err:
            self._ping()
            return self._counted(err)
        except DeniedError as err:
            return self._counted(err)
        except MirrorError as err:
            return err
        self._answered = True
        return answer

    def _counted(self, err: MirrorError) -> MirrorError:
        with self._lock:
            self._refused += 1
            if self._refused >= _REFUSALS and not self._answered:
                raise err
        return err


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
