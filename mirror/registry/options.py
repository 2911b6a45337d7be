"""How to connect to a registry: TLS, time-outs, patience, number of connections."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently (all times in seconds).

    `attempts` counts the first one; a transfer counts only attempts that did not get it further.
    Before attempt n+1 the wait is `base_delay_s` * 2^(n-1), at most `max_delay_s`, shortened at
    random by up to the share `jitter`, so that many workers do not come back all at once. A
    server's `Retry-After` wins when it is longer, up to `max_retry_after_s`.

    A server that refuses (429, 503) and asks for patience, or answers others meanwhile, has not
    failed: that is waited for as long as something gets on within `patience_s`.

    `sleep` is for tests: it takes the place of waiting, and the client's clock moves on by what it
    was asked to wait.
    """

    attempts: int = 5
    base_delay_s: float = 1.0
    max_delay_s: float = 30.0
    max_retry_after_s: float = 120.0
    patience_s: float = 300.0
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


def _user_agent() -> str:
    try:
        return f"mirror/{version('mirror')}"
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "mirror/0"


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """Settings for the connections to one registry (times in seconds, sizes in bytes).

    `plain_http` speaks HTTP without TLS. `verify` False accepts any certificate. `ca_file` is a
    PEM file of certificate authorities trusted besides those of the system; `ca` is the same as
    text, for who has them from a document and not in a file.

    No limit is set on a whole transfer, since a large blob on a slow line is no failure. A
    transfer has stalled when it moves nothing for `stall_timeout_s`, or fewer than
    `stall_min_bytes` in a window of that length. `answer_timeout_s` is how long a registry may
    think about a finished upload: object stores copy the whole blob before they answer.

    `max_connections` is the most requests at once. How many there are at a time, and how fast they
    follow each other, is learnt from the host; `requests_per_s` bounds the latter. `limit_rate`
    bounds the bytes a second of all transfers together, in both directions.

    Proxies come from `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`; trusted roots from
    `SSL_CERT_FILE` and `SSL_CERT_DIR` in place of the system's, as in other tools.
    """

    plain_http: bool = False
    verify: bool = True
    ca_file: Path | None = None
    ca: str | None = field(default=None, repr=False)
    connect_timeout_s: float = 30.0
    stall_timeout_s: float = 60.0
    stall_min_bytes: int = 64 << 10
    answer_timeout_s: float = 300.0
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    max_connections: int = 100
    limit_rate: float | None = None
    requests_per_s: float | None = None
    user_agent: str = field(default_factory=_user_agent)

    def __post_init__(self) -> None:
        for bound in (self.limit_rate, self.requests_per_s):
            if bound is not None and bound <= 0:
                raise ValueError("limits of bytes and requests a second must be positive")

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return "http" if self.plain_http else "https"
