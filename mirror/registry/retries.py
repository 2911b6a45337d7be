"""Whether to send the same again, how often, and after what wait.

A retry helps against the weather (a connection that breaks, a server that is busy), never against
an answer: 401, 403, 404 or wrong bytes are final.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import inf
from typing import TypeVar

from mirror.errors import RegistryError, RegistryNotFoundError
from mirror.events import OnEvent, Retrying

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently (all times in seconds).

    `attempts` counts the first one; a transfer counts only attempts that did not get it further.
    Before attempt n+1 the wait is `base_delay_s` * 2^(n-1), at most `max_delay_s`, shortened at
    random by up to the share `jitter`, so that many workers do not come back all at once. A
    server's `Retry-After` wins when it is longer, up to `max_retry_after_s`.

    A server that refuses (429, 503) and asks for patience, or answers others meanwhile, has not
    failed: that is waited for as long as something gets on within `patience_s` (or `retry_for_s`,
    whichever is longer; with `from_start` the latter alone).

    A server that is away, breaks off or says "not now" (502, 503, 504, 408, 429) is waited for
    until `retry_for_s` seconds have brought nothing, however many attempts that takes: it restarts,
    or the line is down. What it answers HTTP 500 to, or breaks over while it answers others, has
    only its `attempts`. So has a server that has not answered at all yet, whose address may be
    wrong; with `from_start` it is waited for likewise.

    `sleep` is for tests: it takes the place of waiting, and the client's clock moves on by what it
    was asked to wait.
    """

    attempts: int = 5
    base_delay_s: float = 1.0
    max_delay_s: float = 30.0
    max_retry_after_s: float = 120.0
    patience_s: float = 300.0
    retry_for_s: float = 0.0
    from_start: bool = False
    jitter: float = 0.5
    sleep: Callable[[float], object] | None = None
    random: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 <= self.jitter <= 1:
            raise ValueError("a retry policy needs attempts >= 1 and 0 <= jitter <= 1")

    def delay_s(self, failures: int, retry_after_s: float | None = None) -> float:
        """How long to wait after that many `failures` (1 or more) in a row."""
        # The exponent is bounded, as 2.0 ** 5000 overflows.
        delay = min(self.max_delay_s, self.base_delay_s * 2.0 ** min(failures - 1, 30))
        delay *= 1 - self.jitter * self.random()
        if retry_after_s is not None:
            delay = max(delay, min(retry_after_s, self.max_retry_after_s))
        return delay

    @property
    def patience_with_refusals_s(self) -> float:
        """How long a server that refuses is waited for while nothing gets on."""
        return self.retry_for_s if self.from_start else max(self.patience_s, self.retry_for_s)

    def is_over(self, failures: int, waited_s: float, *, known: bool) -> bool:
        """Whether to give a server up after so many `failures` in a row, in `waited_s` seconds.

        `known`: it has answered before.
        """
        patience_s = self.retry_for_s if known or self.from_start else 0.0
        return failures >= self.attempts and waited_s >= patience_s


_RETRY_FOR_S = 300.0
"""A registry, or the node below it, restarts in less; the administrator has left the console."""


def patience(asked_s: float | None = None) -> RetryPolicy:
    """That of commands. Whoever asks for some, in seconds, wants it from the first request on."""
    if asked_s is None:
        return RetryPolicy(retry_for_s=_RETRY_FOR_S)
    return RetryPolicy(retry_for_s=asked_s, from_start=True)


BRIEF = RetryPolicy(attempts=4, base_delay_s=0.5, max_delay_s=5.0)
"""For those who look at a registry again soon. Some answer HTTP 500 for each damaged manifest."""


class TransientFailure(Exception):
    """An attempt failed in a way that may pass; `error` is what to raise once patience ends.

    `happened` says it in a few words, for every time that it happens again. `unreachable`: the host
    could not be connected to, or gave no answer in time. Inside this package
    only: the retry loops stand between it and the callers.
    """

    def __init__(
        self,
        error: RegistryError,
        happened: str,
        retry_after_s: float | None = None,
        *,
        unreachable: bool = False,
    ) -> None:
        super().__init__(str(error))
        error.may_pass = True
        self.error, self.happened, self.retry_after_s = error, happened, retry_after_s
        self.unreachable = unreachable


class Tally:
    """How many answers threads got from one host, and how often work got further. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: Counter[str] = Counter()
        self._of_threads: Counter[tuple[int, str]] = Counter()

    def add(self, kind: str = "") -> None:
        """Count an answer to this thread or, of this `kind`, work that got further."""
        with self._lock:
            self._all[kind] += 1
            self._of_threads[threading.get_ident(), kind] += 1

    def of_others(self, kind: str = "") -> int:
        """What other threads have of this kind so far."""
        with self._lock:
            return self._all[kind] - self._of_threads[threading.get_ident(), kind]


class Backoff:
    """The failures of one piece of work in a row; used by one thread.

    `tally` is that of the host, and `known`: it has answered somebody. What others got further with
    renews this patience only where the same could help here: bytes that the host took, or work
    that the same method does. A registry that takes nothing answers questions all the same.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        sleep: Callable[[float], object],
        where: str,
        on_event: OnEvent,
        tally: Tally,
        known: Callable[[], bool],
    ) -> None:
        self._policy, self._sleep, self._where, self._on_event = policy, sleep, where, on_event
        self._tally, self._known = tally, known
        method = where.partition(" ")[0]
        self._kind = "GET" if method == "HEAD" else method
        self._helps = {self._kind, "PUT"}
        self._answered, self._further = self._others()
        self.failures = 0
        self._own, self._refusals, self._waited_s = 0, 0, 0.0

    def progressed(self) -> None:
        """The work got further, or is done: patience starts anew."""
        self.failures = self._own = self._refusals = 0
        self._waited_s = 0.0
        self._tally.add(self._kind)

    def over(self, attempt: Callable[[], Result]) -> Result:
        """What `attempt` returns, which is made again after failures that may pass."""
        while True:
            try:
                result = attempt()
            except TransientFailure as failure:
                self.wait(failure)
            except RegistryNotFoundError:
                self.progressed()  # that is what was asked
                raise
            else:
                self.progressed()
                return result

    def _others(self) -> tuple[int, int]:
        return self._tally.of_others(), sum(map(self._tally.of_others, self._helps))

    def wait(self, failure: TransientFailure) -> None:
        """Wait before the next attempt.

        Raises:
            RegistryError: that of `failure`, when patience is at its end.
        """
        answered, further = self._answered, self._further
        self._answered, self._further = self._others()
        others = self._answered > answered
        if self._further > further:
            self._waited_s = 0.0
        status, policy = failure.error.status, self._policy
        if status in (429, 503) and (others or failure.retry_after_s is not None):
            self._refusals += 1
        else:
            self.failures += 1
            self._own += others or status == 500
        number = self.failures + self._refusals
        refused_s = policy.patience_with_refusals_s if self._refusals else inf
        if (
            self._own >= policy.attempts
            or (number >= policy.attempts and self._waited_s >= refused_s)
            or policy.is_over(self.failures, self._waited_s, known=self._known())
        ):
            raise failure.error from failure.__cause__
        delay_s = policy.delay_s(number, failure.retry_after_s)
        self._on_event(Retrying(self._where, number, delay_s, failure.happened))
        self._waited_s += delay_s
        self._sleep(delay_s)


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Read a `Retry-After` header: seconds, or an HTTP date (RFC 9110, 10.2.3).

    None where there is none or it cannot be understood; never negative.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])  # nine digits are 30 years, and always a finite number
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
