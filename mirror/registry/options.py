"""The settings of a client: how to connect to a registry, and how patiently to repeat requests."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mirror.oci.manifest import MAX_MANIFEST_BYTES


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


_RETRY_FOR_S = 300.0  # a registry, or the node below it, restarts in less


def patience(asked_s: float | None = None) -> RetryPolicy:
    """That of commands. Whoever asks for some, in seconds, wants it from the first request on."""
    if asked_s is None:
        return RetryPolicy(retry_for_s=_RETRY_FOR_S)
    return RetryPolicy(retry_for_s=asked_s, from_start=True)


BRIEF = RetryPolicy(attempts=4, base_delay_s=0.5, max_delay_s=5.0)
"""For those who look at a registry again soon. Some answer HTTP 500 for each damaged manifest."""


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A certificate in PEM form and its private key, not encrypted; None: in the same file."""

    cert_file: Path
    key_file: Path | None = None


@cache
def _user_agent() -> str:
    try:
        return f"mirror/{version('deckhouse-mirror')}"
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "mirror/0"


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """Settings for the connections to one registry (times in seconds, sizes in bytes).

    `plain_http` speaks HTTP without TLS. `verify` False accepts any certificate. `ca_file` is a
    PEM file of certificate authorities trusted besides those of the system; `ca` is the same as
    text, for who has them from a document and not in a file; messages about an authority that is
    not trusted say how to name it (`ca_from`), and those about TLS how to do without (`plain_by`).
    `certificate` proves who we are to a registry that asks for one, and to no other host. What
    docker and podman keep for a host in a folder `certs.d` counts too.

    `trusted_hosts` are names of other hosts to which the registry may lead us although they are in
    a private network and it is not, or that may get our login without TLS as its token server.

    No limit is set on a whole transfer, since a large blob on a slow line is not a failure. A
    transfer has stalled when it moves nothing for `stall_timeout_s`, or fewer than
    `stall_min_bytes` in a window of that length. `answer_timeout_s` is how long a registry may
    think about a finished upload: object stores copy the whole blob before they answer.

    `max_connections` is the most requests at once. How many there are at a time, and how fast they
    follow each other, is learnt from the host; `requests_per_s` bounds the latter. `limit_rate`
    bounds the bytes a second of all transfers together, in both directions. `manifest_bytes` is the
    largest manifest that is read.

    Proxies come from `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`; trusted roots from
    `SSL_CERT_FILE` and `SSL_CERT_DIR` in place of the system's, as in other tools.
    """

    plain_http: bool = False
    verify: bool = True
    ca_file: Path | None = None
    ca: str | None = field(default=None, repr=False)
    certificate: ClientCertificate | None = None
    ca_from: str = "with --ca"
    plain_by: str = "add --insecure"
    trusted_hosts: frozenset[str] = frozenset()
    connect_timeout_s: float = 30.0
    stall_timeout_s: float = 60.0
    stall_min_bytes: int = 64 << 10
    answer_timeout_s: float = 300.0
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    max_connections: int = 100
    limit_rate: float | None = None
    requests_per_s: float | None = None
    manifest_bytes: int = MAX_MANIFEST_BYTES
    user_agent: str = field(default_factory=_user_agent)

    def __post_init__(self) -> None:
        for bound in (self.limit_rate, self.requests_per_s):
            if bound is not None and bound <= 0:
                raise ValueError("limits of bytes and requests a second must be positive")

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return "http" if self.plain_http else "https"
