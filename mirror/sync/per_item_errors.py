"""Telling an item that a registry cannot serve from a registry that cannot be used at all.

Registries answer a damaged manifest with HTTP 500 and break the connection over a damaged blob, so
one bad file looks like a bad server. Whoever asks about thousands of items wants the other
thousands answered, and still wants to stop at once where nothing works.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from mirror.errors import (
    CancelledError,
    DeniedError,
    MirrorError,
    UnreachableError,
)
from mirror.events import PhaseAdvanced, PhaseStarted
from mirror.registry import RegistryReader
from mirror.run import Run
from mirror.sync.workers import gather

Item = TypeVar("Item")
Result = TypeVar("Result")

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
