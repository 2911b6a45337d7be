"""What is remembered about endpoints: which failed lately, and which lack what.

It only decides who is asked first. Nobody is left out for what is remembered, so that a memory that
has grown old costs time and never an answer.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)

_MOST_LACKS = 10_000


@dataclass(slots=True)
class _Rest:
    """An endpoint that failed `failures` times in a row and rests until a time of the clock.

    `probed`: that time has come once, and somebody was sent to see.
    """

    failures: int
    until: float
    probed: bool = False


class HealthMemory(Generic[Name]):
    """Remembers failures of endpoints, and what they lack. Thread-safe. Times are in seconds.

    An endpoint that fails rests for `first_rest_s`, and after each further failure in a row for
    twice as long, up to `longest_rest_s`. While it rests it is asked last. When the rest is over,
    one caller finds it at its place again and the others go on as before until that has told how
    it went. That something is lacking is remembered for `lack_s`.

    `clock` counts seconds and never jumps.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        first_rest_s: float = 2.0,
        longest_rest_s: float = 60.0,
        lack_s: float = 30.0,
    ) -> None:
        self._clock, self._lack_s = clock, lack_s
        self._first_rest_s, self._longest_rest_s = first_rest_s, longest_rest_s
        self._lock = threading.Lock()  # guards everything below
        self._resting: dict[Name, _Rest] = {}
        self._denying: set[Name] = set()
        self._lacks: OrderedDict[tuple[Name, str], float] = OrderedDict()

    def in_order(self, endpoints: Sequence[Name], content: str) -> tuple[Name, ...]:
        """`endpoints` as they are to be asked for `content`: their own order, but last those that
        rest, and before them those that lacked it a moment ago."""
        now = self._clock()
        with self._lock:
            return tuple(
                sorted(
                    endpoints,  # sorted() keeps the order of equals
                    key=lambda one: (
                        not self._is_to_be_asked(one, now),
                        self._lacks.get((one, content), now) > now,
                    ),
                )
            )

    def _is_to_be_asked(self, endpoint: Name, now: float) -> bool:
        rest = self._resting.get(endpoint)
        if rest is None:
            return True
        if now < rest.until:
            return False
        # This caller goes and sees; until it is back, or lost, nobody else does.
        rest.probed, rest.until = True, now + self._rest_s(rest.failures)
        return True

    def is_well(self, endpoint: Name) -> bool:
        """Whether its last answer was one."""
        with self._lock:
            return endpoint not in self._resting

    def failed(self, endpoint: Name) -> float | None:
        """It gave no usable answer. The length of its rest if it was well until now, else None."""
        now = self._clock()
        with self._lock:
            rest = self._resting.get(endpoint)
            if rest is None:
                self._resting[endpoint] = _Rest(1, now + self._first_rest_s)
                return self._first_rest_s
            # Many requests were under way when it failed, and those are one failure. Whoever asks
            # it last of all while it rests proves nothing new either.
            if rest.probed or now >= rest.until:
                self._resting[endpoint] = _Rest(
                    rest.failures + 1, now + self._rest_s(rest.failures + 1)
                )
            return None

    def _rest_s(self, failures: int) -> float:
        return float(min(self._longest_rest_s, self._first_rest_s * 2.0 ** min(failures - 1, 30)))

    def answered(self, endpoint: Name) -> bool:
        """It answered, if only that it lacks something. True if it had been failing until now."""
        with self._lock:
            return self._resting.pop(endpoint, None) is not None

    def denied(self, endpoint: Name) -> bool:
        """It refused the login, or what the login asked for. True the first time in a row."""
        with self._lock:
            if endpoint in self._denying:
                return False
            self._denying.add(endpoint)
            return True

    def served(self, endpoint: Name, content: str) -> None:
        """It had `content`."""
        with self._lock:
            self._denying.discard(endpoint)
            self._lacks.pop((endpoint, content), None)

    def lacked(self, endpoint: Name, content: str) -> None:
        """It does not have `content`, or has it damaged."""
        now = self._clock()
        with self._lock:
            self._lacks.pop((endpoint, content), None)
            self._lacks[endpoint, content] = now + self._lack_s
            while len(self._lacks) > _MOST_LACKS:
                self._lacks.popitem(last=False)
