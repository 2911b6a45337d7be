"""What went wrong on the way, in our words, and whether it may pass.

Everything foreign (ssl, sockets) is translated here and nowhere else; what answers mean is in
`answers`. Each function returns what to raise: a `TransientFailure` where sending the same again
can help, else the error itself. Messages name the host and the next step, and never contain a query
(it may carry a signature) or a header.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator

from mirror.errors import (
    MirrorError,
    RegistryError,
    StalledError,
    UnreachableError,
    shortage,
)
from mirror.registry.http1 import clean
from mirror.registry.options import ConnectionOptions
from mirror.registry.retries import TransientFailure
from mirror.registry.streams import WireError, WireFault


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
        return _from_proxy(err, err.proxy, where=where, host=host, options=options)
    match err.fault:
        case WireFault.CONNECT_LATE:
            happened = f"no connection to {host} within {options.connect_timeout_s:g} s"
            advice = f"check the address, the firewall between, and the proxy settings{origin}"
            error = UnreachableError(f"{where}: {happened}; {advice}", where=where)
            return TransientFailure(error, happened, unreachable=True)
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
            return _from_connect(err, where=where, host=host, origin=origin, options=options)
        case WireFault.BROKEN if told := _alert(err, host):
            return UnreachableError(f"{where}: {told}", where=where)
        case WireFault.BROKEN:
            happened = f"the connection to {host} broke"
            advice = "if this stays so, check the network and the registry's own log"
            said = f"{where}: {happened}: {_reason(err)}; {advice}"
            return TransientFailure(UnreachableError(said, where=where), happened)
    problem = f"{host} cannot be used this way: {_reason(err)}"
    return RegistryError(f"{where}: {problem}", where=where)


_REFUSED_BY_PROXIES = {
    "HTTP 407": "asks for a login (HTTP 407): write http://user:password@host:port",
    "HTTP 502": "does not reach it (HTTP 502)",
    "HTTP 503": "does not reach it (HTTP 503)",
    "HTTP 504": "does not reach it in time (HTTP 504)",
}


def _from_proxy(
    err: WireError, proxy: str, *, where: str, host: str, options: ConnectionOptions
) -> TransientFailure | MirrorError:
    """What a proxy of the environment did, or is not there to do."""
    causes = tuple(_causes(err))
    passes = True
    match err.fault:
        case WireFault.CONNECT_LATE:
            what = f"takes no connection within {options.connect_timeout_s:g} s"
        case WireFault.CONNECT if any(isinstance(one, ConnectionRefusedError) for one in causes):
            what = "refuses connections"
        case WireFault.CONNECT if found := [
            one for one in causes if isinstance(one, socket.gaierror)
        ]:
            what = f"has a name that cannot be resolved ({found[0].strerror})"
            passes = found[0].errno == socket.EAI_AGAIN
        case WireFault.CONNECT:
            what = f"cannot be connected to: {_reason(err)}"
            passes = not any(isinstance(one, ssl.SSLError) for one in causes)
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
    err: Exception, *, where: str, host: str, origin: str, options: ConnectionOptions
) -> TransientFailure | MirrorError:
    def unreachable(text: str) -> UnreachableError:
        return UnreachableError(f"{where}: {text}{origin}", where=where)

    for cause in _causes(err):
        if (lacking := shortage(cause)) is not None:
            return lacking
        if isinstance(cause, ssl.SSLCertVerificationError):
            return unreachable(
                f"the certificate of {host} is not trusted ({cause.verify_message}); name the "
                f"authority that signed it {options.ca_from}, check the host name and this "
                "machine's clock, or accept any certificate with --tls-skip-verify"
            )
        if isinstance(cause, ssl.SSLEOFError):
            break  # cut off during the handshake: a broken connection like others
        if isinstance(cause, ssl.SSLError):
            reason = (cause.reason or str(cause)).replace("_", " ").lower()
            if any(sign in reason for sign in ("wrong version number", "record layer", "http")):
                return unreachable(
                    f"{host} does not speak TLS but, it seems, plain HTTP; "
                    f"if that is intended, {options.plain_by}"
                )
            return unreachable(
                _alert(err, host)
                or f"no TLS connection to {host}: {reason}; check that the port is the registry's "
                f"and name its authority {options.ca_from}, or try --tls-skip-verify"
            )
        if isinstance(cause, socket.gaierror):
            happened = f"the name {host} cannot be resolved"
            failure = unreachable(
                f"{happened} ({cause.strerror}); check its spelling and this machine's DNS"
            )
            # EAI_AGAIN is the name server's own trouble; other answers stay what they are.
            again = cause.errno == socket.EAI_AGAIN
            return TransientFailure(failure, happened, unreachable=True) if again else failure
        if isinstance(cause, ConnectionRefusedError):
            happened = f"{host} refuses connections"
            advice = "check that the server runs and that the port is right"
            return TransientFailure(
                unreachable(f"{happened}; {advice}"), happened, unreachable=True
            )
    happened = f"no connection to {host}"
    failure = unreachable(f"{happened}: {_reason(err)}; check the address and the network")
    return TransientFailure(failure, happened, unreachable=True)


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
    return TransientFailure(
        StalledError(
            f"{where}: {happened}: fewer than {options.stall_min_bytes} bytes in "
            f"{options.stall_timeout_s:g} s; check the network between",
            where=where,
        ),
        happened,
    )


def _causes(err: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = err
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _reason(err: Exception) -> str:
    return clean(str(err) or type(err).__name__)
