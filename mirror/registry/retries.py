"""What failed on the way, in our words; whether to send the same again, how often, and when.

A retry helps against the weather (a connection that breaks, a server that is busy), never against
an answer: 401, 403, 404 or wrong bytes are final. What answers mean is in `answers`; everything
else that is foreign (ssl, sockets) is translated here. Each function returns what to raise: a
`TransientFailure` where sending the same again can help, else the error itself. Messages name the
host and the next step, and never contain a query (it may carry a signature) or a header.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import inf
from typing import TypeVar

from mirror.errors import (
    MirrorError,
    RegistryError,
    RegistryNotFoundError,
    StalledError,
    UnreachableError,
    printable,
    shortage,
)
from mirror.events import OnEvent, Retrying
from mirror.registry.http1 import WireError, WireFault
from mirror.registry.options import ConnectionOptions, RetryPolicy

Result = TypeVar("Result")


class TransientFailure(Exception):
    """An attempt failed in a way that may pass; `error` is what to raise once patience ends.

    `happened` says it in a few words, for every time that it happens again. `unreachable`: the host
    could not be connected to, or gave no answer in time. The retry loops keep it in this package.
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
        """Wait before the next attempt, or raise the error of `failure` once patience has ended."""
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


# -- failures of the network -----------------------------------------------------------------------


def from_network(
    err: WireError,
    *,
    where: str,
    host: str,
    options: ConnectionOptions,
    in_body: bool = False,
    named_by: str = "",
) -> TransientFailure | MirrorError:
    """Translate an exception of the network.

    `in_body`: the answer's head had arrived. `named_by` is the registry in whose answer the address
    of `host` stood, if that is another.
    """
    origin = ""
    if named_by:
        origin = (
            f". {named_by} named this address; if only its own network knows it, correct that "
            "there (`http.host`, realm), or let the proxy in front of it pass on `Host`"
        )
    if err.proxy is not None:
        return _from_proxy(err, err.proxy, where, host, options)
    match err.fault:
        case WireFault.CONNECT_LATE:
            happened = f"no connection to {host} within {options.connect_timeout_s:g} s"
            advice = f"check the address, the firewall between, and the proxy settings{origin}"
            return _away(where, happened, f"; {advice}")
        case WireFault.READ_LATE if not in_body:
            happened = f"{host} took the request but did not answer in time"
            advice = "the registry may be overloaded, try again later"
            error = StalledError(f"{where}: {happened}; {advice}", where=where)
            return TransientFailure(error, f"{host} did not answer in time", unreachable=True)
        case WireFault.READ_LATE | WireFault.WRITE_LATE:
            return stalled(where, host, options)
        case WireFault.INNER:
            return RegistryError(
                f"{where}: {named_by}, which is a public address, leads to {host} ({err}), in a "
                "private network; nothing was asked there. If that is right, allow it "
                f"with --trust-host {host}{origin}",
                where=where,
            )
        case WireFault.CONNECT:
            return _from_connect(err, where, host, origin, options)
        case WireFault.BROKEN if told := _alert(err, host):
            return UnreachableError(f"{where}: {told}", where=where)
        case WireFault.BROKEN:
            happened = f"the connection to {host} broke"
            advice = "if this stays so, check the network and the registry's own log"
            said = f"{where}: {happened}: {_reason(err)}; {advice}"
            return TransientFailure(UnreachableError(said, where=where), happened)
    problem = f"{host} cannot be used this way: {_reason(err)}"
    return RegistryError(f"{where}: {problem}", where=where)


def _away(where: str, happened: str, more: str) -> TransientFailure:
    """The server is away; its error says `happened`, and `more`."""
    error = UnreachableError(f"{where}: {happened}{more}", where=where)
    return TransientFailure(error, happened, unreachable=True)


_REFUSED_BY_PROXIES = {
    "HTTP 407": "asks for a login (HTTP 407): write http://user:password@host:port",
    "HTTP 502": "does not reach it (HTTP 502)",
    "HTTP 503": "does not reach it (HTTP 503)",
    "HTTP 504": "does not reach it in time (HTTP 504)",
}


def _from_proxy(
    err: WireError, proxy: str, where: str, host: str, options: ConnectionOptions
) -> TransientFailure | MirrorError:
    """What a proxy of the environment did, or is not there to do."""
    causes = {type(one): one for one in _causes(err)}
    unknown, passes = causes.get(socket.gaierror), True
    match err.fault:
        case WireFault.CONNECT_LATE:
            what = f"takes no connection within {options.connect_timeout_s:g} s"
        case WireFault.CONNECT if ConnectionRefusedError in causes:
            what = "refuses connections"
        case WireFault.CONNECT if isinstance(unknown, socket.gaierror):
            what = f"has a name that cannot be resolved ({unknown.strerror})"
            passes = unknown.errno == socket.EAI_AGAIN
        case WireFault.CONNECT:
            what = f"cannot be connected to: {_reason(err)}"
            passes = not any(issubclass(one, ssl.SSLError) for one in causes)
        case WireFault.PROXY:
            what = _REFUSED_BY_PROXIES.get(str(err), f"refused: {_reason(err)}")
            passes = "not reach" in what
        case WireFault.READ_LATE | WireFault.WRITE_LATE:
            what = "did not answer in time"
        case _:
            what = f"broke off: {_reason(err)}"
    error = UnreachableError(
        f"{where}: the proxy on the way to {host}, {proxy}, {what}; check HTTPS_PROXY and "
        "HTTP_PROXY, or name the host in NO_PROXY",
        where=where,
    )
    happened = f"the proxy {proxy} {what}"
    return TransientFailure(error, happened, unreachable=True) if passes else error


def _from_connect(
    err: Exception, where: str, host: str, origin: str, options: ConnectionOptions
) -> TransientFailure | MirrorError:
    for cause in _causes(err):
        if (lacking := shortage(cause)) is not None:
            return lacking
        told = ""
        if isinstance(cause, ssl.SSLCertVerificationError):
            told = (
                f"the certificate of {host} is not trusted ({cause.verify_message}); name the "
                f"authority that signed it {options.ca_from}, check the host name and this "
                "machine's clock, or accept any certificate with --tls-skip-verify"
            )
        elif isinstance(cause, ssl.SSLEOFError):
            break  # cut off during the handshake: a broken connection like others
        elif isinstance(cause, ssl.SSLError):
            reason = (cause.reason or str(cause)).replace("_", " ").lower()
            told = _alert(err, host) or (
                f"no TLS connection to {host}: {reason}; check that the port is the registry's "
                f"and name its authority {options.ca_from}, or try --tls-skip-verify"
            )
            if any(sign in reason for sign in ("wrong version number", "record layer", "http")):
                told = (
                    f"{host} does not speak TLS but, it seems, plain HTTP; "
                    f"if that is intended, {options.plain_by}"
                )
        elif isinstance(cause, socket.gaierror):
            happened = f"the name {host} cannot be resolved"
            more = f" ({cause.strerror}); check its spelling and this machine's DNS"
            # EAI_AGAIN is the name server's own trouble; other answers stay what they are.
            if cause.errno == socket.EAI_AGAIN:
                return _away(where, happened, more + origin)
            told = happened + more
        elif isinstance(cause, ConnectionRefusedError):
            advice = "; check that the server runs and that the port is right"
            return _away(where, f"{host} refuses connections", advice + origin)
        if told:
            return UnreachableError(f"{where}: {told}{origin}", where=where)
    more = f": {_reason(err)}; check the address and the network"
    return _away(where, f"no connection to {host}", more + origin)


_ABOUT_CERTIFICATES = re.compile(r"(?i)alert_.*(certificate|unknown_ca|access_denied)")


def _alert(err: Exception, host: str) -> str:
    """What to tell where the server ends TLS over our certificate; else nothing."""
    for cause in _causes(err):
        alert = cause.reason or "" if isinstance(cause, ssl.SSLError) else ""
        what = alert.lower().partition("alert_")[2].replace("_", " ")
        if _ABOUT_CERTIFICATES.search(alert):
            return (
                f"{host} wants a client certificate that it accepts (TLS alert: {what}); give one "
                "that its authority signed with --cert and --key, or put it into certs.d"
            )
        if "handshake failure" in what:
            return (
                f"{host} ends TLS (alert: {what}); if it wants a client certificate, give it with "
                "--cert and --key; else check that the port is the registry's"
            )
    return ""


def stalled(where: str, host: str, options: ConnectionOptions) -> TransientFailure:
    """A transfer that moves too little."""
    happened = f"the transfer with {host} stalled"
    told = (
        f"{where}: {happened}: fewer than {options.stall_min_bytes} bytes in "
        f"{options.stall_timeout_s:g} s; check the network between"
    )
    return TransientFailure(StalledError(told, where=where), happened)


def _causes(err: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = err
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _reason(err: Exception) -> str:
    return clean(str(err) or type(err).__name__)


_MAX_REASON = 300


def clean(text: str) -> str:
    """Foreign text for a message: without control characters, and not long."""
    return printable(" ".join(text[: 2 * _MAX_REASON].split()))[:_MAX_REASON]
