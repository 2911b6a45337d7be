"""Work in several threads, all of which end before the call that began them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from itertools import islice
from typing import TypeVar

from mirror.errors import (
    CancelledError,
    DeniedError,
    FileSystemError,
    MirrorError,
    NoSpaceError,
    UnreachableError,
)
from mirror.events import PhaseAdvanced, PhaseStarted
from mirror.registry import RegistryReader
from mirror.run import Run

Item = TypeVar("Item")
Result = TypeVar("Result")

_HOPELESS = (DeniedError, UnreachableError, NoSpaceError, FileSystemError)
"""Failures that the items behind would only repeat, each after its own retries."""


class _NotBegunError(Exception):
    """An item that came to its turn when nothing new was to begin."""


@contextmanager
def _pool(run: Run) -> Iterator[ThreadPoolExecutor]:
    """A pool that a bug or Ctrl-C in the caller stops: `run` is cancelled, all threads joined."""
    pool = ThreadPoolExecutor(max_workers=run.jobs, thread_name_prefix="mirror")
    try:
        yield pool
    except BaseException:
        run.cancellation.cancel()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def for_each(
    items: Iterable[Item], work: Callable[[Item], Result], *, run: Run
) -> Generator[tuple[Item, Result | MirrorError], None, None]:
    """Do `work` on every item in `run.jobs` threads; yield each with its result or its failure.

    The order is that of completion. A `MirrorError` belongs to its item and the others carry on,
    unless it is of a kind that would only repeat itself (denied, unreachable, disk): then items
    that have not begun are left out. Any other exception stops the rest and is raised. On return
    no thread of ours is running.

    Close it (`contextlib.closing`), so that an exception in the loop over it, Ctrl-C for one, ends
    the threads at once and not when the generator is collected.

    `work` asks `run` in whatever waits and long loops it has. What ends all of the work early
    cancels `run`, which is therefore the operation's own (`Run.of`) and not its caller's. Once
    `run` is stopped nothing new begins.

    Raises:
        CancelledError: `run` was stopped from outside, or an item says that it was.
    """
    over = threading.Event()

    def begin(item: Item) -> Result:
        if over.is_set() or run.stopped:
            raise _NotBegunError
        try:
            return work(item)
        except MirrorError as err:
            if isinstance(err, (*_HOPELESS, CancelledError)):
                over.set()
            raise
        except BaseException:
            over.set()
            run.cancellation.cancel()  # wakes those that wait; the caller hears of it, below
            raise

    queue = iter(items)
    stop: CancelledError | None = None
    with _pool(run) as pool:
        running: dict[Future[Result], Item] = {}
        while True:
            if not over.is_set() and not run.stopped:
                # A short queue, so that 10^5 items do not become 10^5 futures at once.
                for item in islice(queue, 2 * run.jobs - len(running)):
                    running[pool.submit(begin, item)] = item
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item = running.pop(future)
                error = future.exception()
                if error is None:
                    yield item, future.result()
                elif isinstance(error, CancelledError):
                    stop = stop or error
                    run.cancellation.cancel()
                elif isinstance(error, MirrorError):
                    yield item, error
                elif not isinstance(error, _NotBegunError):
                    raise error
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
"""This many refusals without one good answer are no longer the items' fault."""


class PerItemErrors:
    """Asks one registry about many items. Thread-safe.

    An error that belongs to its item is returned as a value. One that the next item would only
    repeat is raised: the registry does not answer a ping either, or refuses everything.
    `asked` counts the questions.
    """

    def __init__(self, client: RegistryReader, run: Run) -> None:
        self._client, self._run = client, run
        self._lock = threading.Lock()  # guards the next two
        self._refused = 0
        self.asked = 0
        self._answered = False

    def ask(self, question: Callable[[], Result]) -> Result | MirrorError:
        """The answer, or the error that belongs to this question alone.

        Raises:
            UnreachableError, DeniedError: of the registry as a whole.
            CancelledError: the run was stopped.
        """
        with self._lock:
            self.asked += 1
        try:
            answer = question()
        except CancelledError:
            raise
        except UnreachableError as err:
            self._client.ping()
            return self._counted(err)
        except DeniedError as err:
            return self._counted(err)
        except MirrorError as err:
            return err
        self._answered = True  # only ever set, so no lock is needed
        return answer

    def ask_all(
        self, items: Sequence[Item], question: Callable[[Item], Result], *, title: str | None = None
    ) -> list[Result | MirrorError]:
        """`ask` about every item, in `run.jobs` threads; the answers are in the items' order.

        With a `title` the questions are reported as a phase of this name.
        """
        if not items:
            return []
        on_event = self._run.on_event

        def ask(item: Item) -> tuple[Result | MirrorError]:
            try:
                # In a tuple: an error that is returned is no error to the workers.
                return (self.ask(lambda: question(item)),)
            finally:
                if title is not None:
                    on_event(PhaseAdvanced())

        if title is not None:
            on_event(PhaseStarted(title, len(items)))
        return [answer for (answer,) in gather(items, ask, run=self._run)]

    def _counted(self, err: MirrorError) -> MirrorError:
        with self._lock:
            self._refused += 1
            if self._refused >= _REFUSALS and not self._answered:
                raise err
        return err
