"""How a registry is connected to: TLS, time-outs, retries, number of connections."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mirror.registry.retry import RetryPolicy


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
    user_agent: str = field(default_factory=_user_agent)

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return "http" if self.plain_http else "https"
