"""How to connect to a registry: time-outs, patience, whom to trust, which proxy to use."""

from __future__ import annotations

import base64
import ipaddress
import logging
import os
import random
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from mirror.errors import InputError

_log = logging.getLogger(__name__)

_PROXY_PORTS = {"http": 80, "https": 443}


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


class Proxy(NamedTuple):
    """A proxy of the environment."""

    scheme: str
    host: str
    port: int
    username: str
    password: str

    @classmethod
    def parse(cls, address: str) -> Proxy:
        """Read `[scheme://][user:password@]host[:port]`.

        Raises:
            InputError: it cannot be used.
        """
        try:
            parts = urlsplit(address if "://" in address else f"http://{address}")
            scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
            if scheme.startswith("socks"):
                raise InputError(
                    "the proxy named by HTTP_PROXY, HTTPS_PROXY or ALL_PROXY speaks SOCKS, which "
                    "mirror does not; name one that speaks HTTP: http://host:port"
                )
            if scheme not in _PROXY_PORTS or not host:
                raise ValueError("not the address of a proxy")
        except ValueError as err:
            # The text may hold a proxy's password, so it is not repeated.
            raise InputError(
                "the proxy named by HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used "
                f"({type(err).__name__}); write http://host:port"
            ) from None
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        return cls(scheme, host, port or _PROXY_PORTS[scheme], user, password)

    @property
    def headers(self) -> dict[str, str]:
        """What to show to the proxy itself."""
        if not self.username:
            return {}
        pair = f"{self.username}:{self.password}".encode()
        return {"Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def proxy_for(scheme: str, host: str, port: int | None, proxies: Mapping[str, str]) -> str | None:
    """The proxy to reach a host through, if any.

    `proxies` is what `urllib.request.getproxies` finds in the environment; its `no` (`NO_PROXY`)
    lists names, domains (with or without a leading dot), addresses, `host:port` and, as Go's
    programs have it, networks such as `10.0.0.0/8`; `*` is everything.
    """
    proxy = proxies.get(scheme) or proxies.get("all")
    if proxy is None:
        return None
    entries = [one.strip().lower() for one in proxies.get("no", "").split(",")]
    return None if any(_covers(one, host.lower(), port) for one in entries) else proxy


def _covers(entry: str, host: str, port: int | None) -> bool:
    """Whether an entry of `NO_PROXY` means that host."""
    if "/" in entry:
        with suppress(ValueError):  # not a network, or not an address
            return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
        return False
    name = entry.removeprefix("*").removeprefix(".").strip("[]")
    if not name:
        return entry == "*"
    return host == name or host.endswith(f".{name}") or f"{host}:{port}" == name


def tls_context(options: ConnectionOptions) -> ssl.SSLContext:
    """Build what decides whom to trust.

    The system's roots are the default, not those packed with a Python library: a closed
    environment adds its authority with `update-ca-certificates`, and every other tool on the
    machine honours that. OpenSSL itself reads `SSL_CERT_FILE` and `SSL_CERT_DIR`. Only a system
    without any roots (a bare container image) gets the packed ones.

    Raises:
        InputError: `ca_file` or `ca` cannot be read or holds no certificate.
    """
    if options.verify and not _system_has_roots():
        _log.debug("this system has no certificate authorities; using those packed with httpx")
        from httpx import create_ssl_context  # it takes a while to load

        context = create_ssl_context(trust_env=False)
    else:
        context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if not options.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        if options.ca_file is not None:
            _trust_file(context, options.ca_file)
        if options.ca is not None:
            _trust_text(context, options.ca)
    return context


def _trust_file(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as err:
        raise InputError(
            f"--ca {path}: no certificate in PEM form "
            "(-----BEGIN CERTIFICATE-----) could be read from it"
        ) from err
    except OSError as err:
        raise InputError(f"--ca {path}: {err.strerror or err}") from err


def _trust_text(context: ssl.SSLContext, pem: str) -> None:
    try:
        # Remarks between certificates may be in any language.
        context.load_verify_locations(cadata=pem.encode("ascii", "ignore").decode())
    except (ssl.SSLError, ValueError) as err:  # ValueError: empty
        raise InputError(
            "the certificate authority that was given as text is no certificate in PEM form "
            "(-----BEGIN CERTIFICATE-----)"
        ) from err


def _system_has_roots() -> bool:
    paths = ssl.get_default_verify_paths()
    if paths.openssl_cafile_env in os.environ or paths.openssl_capath_env in os.environ:
        return True  # an explicit choice, even of nothing, is not to be widened
    if paths.cafile and Path(paths.cafile).is_file():
        return True
    return bool(paths.capath and any(Path(paths.capath).glob("*.[0-9]")))
