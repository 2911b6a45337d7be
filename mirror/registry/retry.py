"""When a failed request is sent again, and how long to wait before that.

A retry helps against the weather (a connection that breaks, a server that is busy), never against
an answer: 401, 403, 404 or wrong bytes are final and do not come by here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from mirror.errors import RegistryError
from mirror.events import OnEvent, Retrying

TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
"""Answers that say "not now" and not "no"."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently (all times in seconds).

    `attempts` counts the first one; a transfer counts only attempts that did not get it further.
    Before attempt n+1 the wait is `base_delay_s` * 2^(n-1), at most `max_delay_s`, shortened at
    random by up to the share `jitter`, so that many workers do not come back all at once. A
    server's `Retry-After` wins when it is longer, up to `max_retry_after_s`.

    `sleep` None waits in a way that closing the client ends; pass another to wait elsewhere, such
    as `Event.wait` of a cancellation flag.
    """

    attempts: int = 5
    base_delay_s: float = 1.0
    max_delay_s: float = 30.0
    max_retry_after_s: float = 120.0
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


BRIEF = RetryPolicy(attempts=4, base_delay_s=0.5, max_delay_s=5.0)
"""For those who look at a registry again soon. Some answer HTTP 500 for each damaged manifest."""


class TransientFailure(Exception):
    """An attempt failed in a way that may pass; `error` is what to raise once patience ends.

    `happened` says it in a few words, for every time that it happens again. Inside this package
    only: the retry loops stand between it and the callers.
    """

    def __init__(
        self, error: RegistryError, happened: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(str(error))
        error.may_pass = True
        self.error, self.happened, self.retry_after_s = error, happened, retry_after_s


class Backoff:
    """The failures of one piece of work in a row; used by one thread."""

    def __init__(
        self,
        policy: RetryPolicy,
        sleep: Callable[[float], object],
        where: str,
        on_event: OnEvent,
    ) -> None:
        self._policy, self._sleep, self._where, self._on_event = policy, sleep, where, on_event
        self.failures = 0

    def progressed(self) -> None:
        """The work got further: patience starts anew."""
        self.failures = 0

    def wait(self, failure: TransientFailure) -> None:
        """Wait before the next attempt.

        Raises:
            RegistryError: that of `failure`, when this was the last attempt.
        """
        self.failures += 1
        if self.failures >= self._policy.attempts:
            raise failure.error from failure.__cause__
        delay_s = self._policy.delay_s(self.failures, failure.retry_after_s)
        self._on_event(Retrying(self._where, self.failures, delay_s, failure.happened))
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
