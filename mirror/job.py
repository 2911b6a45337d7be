"""`start`: an operation in a thread of its own, with a handle to follow, await and cancel it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any, Generic, ParamSpec, TypeVar

from mirror.errors import shortage
from mirror.events import Event
from mirror.run import Run

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_KEPT_EVENTS = 10_000


class Job(Generic[Result]):
    """An operation at work. Thread-safe.

    `future` serves other ways of waiting: `asyncio.wrap_future(job.future)`. It cannot be
    cancelled; `cancel` stops the work.
    """

    def __init__(self, run: Run, name: str) -> None:
        self.future: Future[Result] = Future()
        self.future.set_running_or_notify_cancel()  # or cancelling it would lose the outcome
        self._run = run.heard_by(self._hear)
        self._listener = run.on_event
        self._changed = threading.Condition()
        self._events: deque[Event] = deque(maxlen=_KEPT_EVENTS)  # under the condition
        self._name = name

    def __repr__(self) -> str:
        return f"<Job {self._name}, {'done' if self.done else 'at work'}>"

    @property
    def done(self) -> bool:
        """Whether the operation has returned or raised."""
        return self.future.done()

    def cancel(self) -> None:
        """Ask the operation to stop. It raises CancelledError soon, which `result` passes on."""
        self._run.cancellation.cancel()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the operation is over, at most `timeout_s` seconds; return `done`."""
        wait([self.future], timeout_s)
        return self.done

    def result(self, timeout_s: float | None = None) -> Result:
        """What the operation returned, once it has; whatever it raised is raised here.

        Raises:
            TimeoutError: it is still at work after `timeout_s` seconds.
        """
        return self.future.result(timeout_s)

    def events(self) -> Iterator[Event]:
        """What happens, as it happens, until the operation is over. For one reader.

        A reader that falls more than 10,000 events behind misses the oldest of them; the listener
        of the run that was handed to `start` misses none.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events or self.done)
                if not self._events:
                    return
                event = self._events.popleft()
            yield event

    def _hear(self, event: Event) -> None:
        self._listener(event)
        with self._changed:
            self._events.append(event)
            self._changed.notify()

    def _carry_out(self, operation: Callable[[Run], Result]) -> None:
        try:
            result = operation(self._run)
        except BaseException as err:  # noqa: BLE001 - `result` raises it
            self.future.set_exception(err)
        else:
            self.future.set_result(result)
        with self._changed:
            self._changed.notify_all()


def start(
    operation: Callable[Parameters, Result], /, *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Job[Result]:
    """Begin `operation(*args, **kwargs)`, any function here that takes `run`, in a thread.

    A `run` among the arguments says how it works. Cancelling that run cancels the job, and
    cancelling the job leaves that run alone. Python waits for the thread before it exits.

    Raises:
        ResourceError: the system has no thread left.
    """
    given: Any = kwargs.get("run")
    function: Callable[..., Result] = operation
    name = getattr(operation, "__name__", type(operation).__name__)
    job: Job[Result] = Job(Run.of(given), name)
    thread = threading.Thread(
        target=job._carry_out,
        args=(lambda run: function(*args, **{**kwargs, "run": run}),),
        name=f"mirror-{name}",
    )
    try:
        thread.start()
    except RuntimeError as refusal:
        raise shortage(refusal) or refusal from refusal
    return job
