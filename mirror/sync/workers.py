"""Work done by several threads, none of which outlives its caller."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
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

Item = TypeVar("Item")
Result = TypeVar("Result")

DEFAULT_JOBS = 8
"""Threads for work that waits for networks and disks; hashing and sockets release the GIL."""

_HOPELESS = (DeniedError, UnreachableError, NoSpaceError, FileSystemError)
"""Failures that the items behind would only repeat, each after its own retries."""


@contextmanager
def _cancelling_pool(jobs: int, cancel: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """A pool that a bug or Ctrl-C in the caller stops: `cancel` is set and all threads joined."""
    pool = ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="mirror")
    try:
        yield pool
    except BaseException:
        cancel.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def for_each(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    *,
    jobs: int = DEFAULT_JOBS,
    cancel: threading.Event | None = None,
) -> Generator[tuple[Item, Result | MirrorError], None, None]:
    """Do `work` on every item in `jobs` threads; yield each with its result or its failure.

    The order is that of completion. A `MirrorError` belongs to its item and the others carry on,
    unless it is of a kind that would only repeat itself (denied, unreachable, disk): then items
    that have not begun are left out. Any other exception stops the rest and is raised. On return
    no thread of ours is running.

    Close it (`contextlib.closing`), so that an exception in the loop over it, Ctrl-C for one, ends
    the threads at once and not when the generator is collected.

    `work` looks at `cancel` in whatever long loops it has; once it is set nothing new begins.

    Raises:
        CancelledError: `cancel` was set from outside.
        ValueError: `jobs` is not positive.
    """
    if jobs < 1:
        raise ValueError("jobs must be at least 1")
    cancel = cancel or threading.Event()
    queue = iter(items)
    hopeless = False
    with _cancelling_pool(jobs, cancel) as pool:
        running: dict[Future[Result], Item] = {}
        while True:
            if not hopeless and not cancel.is_set():
                # A short queue, so that 10^5 items do not become 10^5 futures at once.
                for item in islice(queue, 2 * jobs - len(running)):
                    running[pool.submit(work, item)] = item
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item = running.pop(future)
                if hopeless and future.cancelled():
                    continue
                error = future.exception()
                if error is None:
                    yield item, future.result()
                elif isinstance(error, CancelledError) or not isinstance(error, MirrorError):
                    raise error
                else:
                    if isinstance(error, _HOPELESS) and not hopeless:
                        hopeless = True
                        for waiting in running:
                            waiting.cancel()
                    yield item, error
    if cancel.is_set():
        raise CancelledError("stopped on request")


def gather(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    *,
    jobs: int = DEFAULT_JOBS,
    cancel: threading.Event | None = None,
) -> list[Result]:
    """The results of `work` on every item, in the items' order; the first failure is raised."""
    numbered = list(enumerate(items))
    results: dict[int, Result] = {}
    failures: dict[int, MirrorError] = {}
    with closing(
        for_each(numbered, lambda pair: work(pair[1]), jobs=jobs, cancel=cancel)
    ) as outcomes:
        for (number, _), outcome in outcomes:
            if isinstance(outcome, MirrorError):
                failures[number] = outcome
            else:
                results[number] = outcome
    if failures:
        raise failures[min(failures)]
    return [results[number] for number, _ in numbered]
