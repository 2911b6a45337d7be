"""What went wrong, in our words: errors of the network and answers that refuse.

Everything foreign (httpx, ssl, sockets) is translated here and nowhere else. Each function returns
what to raise: a `TransientFailure` where sending the same again can help, else the error itself.
Messages name the host and the next step, and never contain a query (it may carry a signature) or
a header.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

from mirror.errors import (
    DeniedError,
    MirrorError,
    RegistryError,
    RegistryNotFoundError,
    StalledError,
    UnreachableError,
)
from mirror.registry.options import ConnectionOptions
from mirror.registry.retry import TRANSIENT_STATUSES, TransientFailure, retry_after_s

LOGIN_HINT = (
    "check the login: --source-login and --source-password (or --license) when pulling, "
    "--registry-login and --registry-password when pushing, or `docker login {host}`"
)
_MAX_REASON = 300


def from_network(
    err: Exception, *, where: str, host: str, options: ConnectionOptions, in_body: bool = False
) -> TransientFailure | MirrorError:
    """Translate an exception of the network; `in_body`: the answer's head had arrived."""
    match err:
        case httpx.ConnectTimeout():
            return TransientFailure(
                UnreachableError(
                    f"{where}: no connection to {host} within {options.connect_timeout_s:g} s; "
                    "check the address, the firewall between, and the proxy settings",
                    where=where,
                )
            )
        case httpx.ReadTimeout() if not in_body:
            return TransientFailure(
                UnreachableError(
                    f"{where}: {host} took the request but did not answer in time; "
                    "the registry may be overloaded, try again later",
                    where=where,
                )
            )
        case httpx.ReadTimeout() | httpx.WriteTimeout():
            return TransientFailure(stalled(where, host, options))
        case httpx.PoolTimeout():
            return TransientFailure(
                UnreachableError(
                    f"{where}: all {options.max_connections} connections to {host} are in use; "
                    "lower the number of parallel transfers",
                    where=where,
                )
            )
        case httpx.ProxyError():
            return UnreachableError(
                f"{where}: the proxy on the way to {host} refused: {_reason(err)}; check "
                "HTTPS_PROXY and HTTP_PROXY, or name the host in NO_PROXY",
                where=where,
            )
        case httpx.ConnectError():
            return _from_connect(err, where=where, host=host)
        case httpx.RemoteProtocolError() | httpx.NetworkError():
            return TransientFailure(
                UnreachableError(
                    f"{where}: the connection to {host} broke: {_reason(err)}; "
                    "if this stays so, check the network and the registry's own log",
                    where=where,
                )
            )
    return RegistryError(f"{where}: {host} cannot be used this way: {_reason(err)}", where=where)


def _from_connect(err: Exception, *, where: str, host: str) -> TransientFailure | MirrorError:
    def unreachable(text: str) -> UnreachableError:
        return UnreachableError(f"{where}: {text}", where=where)

    for cause in _causes(err):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return unreachable(
                f"the certificate of {host} is not trusted ({cause.verify_message}); name the "
                "authority that signed it with --ca, check the host name and this machine's "
                "clock, or accept any certificate with --tls-skip-verify"
            )
        if isinstance(cause, ssl.SSLEOFError):
            break  # cut off during the handshake: a broken connection like others
        if isinstance(cause, ssl.SSLError):
            reason = (cause.reason or str(cause)).replace("_", " ").lower()
            if any(sign in reason for sign in ("wrong version number", "record layer", "http")):
                return unreachable(
                    f"{host} does not speak TLS but, it seems, plain HTTP; "
                    "if that is intended, add --insecure"
                )
            return unreachable(
                f"no TLS connection to {host}: {reason}; check that the port is the registry's "
                "and name its authority with --ca, or try --tls-skip-verify"
            )
        if isinstance(cause, socket.gaierror):
            failure = unreachable(
                f"the name {host} cannot be resolved ({cause.strerror}); "
                "check its spelling and this machine's DNS"
            )
            # EAI_AGAIN is the name server's own trouble; other answers stay what they are.
            return TransientFailure(failure) if cause.errno == socket.EAI_AGAIN else failure
        if isinstance(cause, ConnectionRefusedError):
            return TransientFailure(
                unreachable(
                    f"{host} refuses connections; check that the registry runs and that the "
                    "port is right"
                )
            )
    return TransientFailure(
        unreachable(f"no connection to {host}: {_reason(err)}; check the address and the network")
    )


def stalled(where: str, host: str, options: ConnectionOptions) -> StalledError:
    """A transfer that moves too little."""
    return StalledError(
        f"{where}: the transfer with {host} stalled: fewer than {options.stall_min_bytes} bytes in "
        f"{options.stall_timeout_s:g} s; check the network between",
        where=where,
    )


def from_answer(
    status: int, headers: Mapping[str, str], body: bytes, *, where: str, host: str
) -> TransientFailure | RegistryError:
    """Translate an answer that is not what was asked for (distribution-spec, "Error Codes")."""
    codes, detail = _registry_errors(body)
    said = f"HTTP {status}" + (f", {detail}" if detail else "")
    fields: dict[str, Any] = {"where": where, "status": status, "codes": codes}
    if status in TRANSIENT_STATUSES:
        busy = "is rate limiting" if status == 429 else "has trouble"
        return TransientFailure(
            UnreachableError(
                f"{where}: {host} {busy} ({said}); wait, or check the registry", **fields
            ),
            retry_after_s(headers.get("retry-after")),
        )
    if status in (401, 403):
        verb = "does not accept the login" if status == 401 else "denies this"
        return DeniedError(
            f"{where}: {host} {verb} ({said}); {LOGIN_HINT.format(host=host)}", **fields
        )
    if status == 404:
        return RegistryNotFoundError(
            f"{where}: {host} does not have this ({said}); check the repository path", **fields
        )
    if status == 400 and b"HTTPS server" in body:  # Go's and nginx' words for this mistake
        return UnreachableError(
            f"{where}: {host} wants TLS; leave out --insecure", where=where, status=status
        )
    if 300 <= status < 400:
        return RegistryError(
            f"{where}: {host} answers with a redirect that cannot be followed ({said})", **fields
        )
    if status < 300:
        return RegistryError(
            f"{where}: {host} answers {said} where the specification has another status; "
            "check that this is a registry",
            **fields,
        )
    return RegistryError(f"{where}: {host} refuses ({said})", **fields)


def from_token_server(
    status: int, headers: Mapping[str, str], body: bytes, *, where: str, host: str
) -> TransientFailure | RegistryError:
    """Translate the refusal of the token server that the registry `host` named."""
    if status in (400, 401, 403, 404):
        codes, detail = _registry_errors(body)
        said = f"HTTP {status}" + (f", {detail}" if detail else "")
        return DeniedError(
            f"{where}: the token server of {host} refuses ({said}); {LOGIN_HINT.format(host=host)}",
            where=where,
            status=status,
            codes=codes,
        )
    return from_answer(status, headers, body, where=where, host=f"the token server of {host}")


def _registry_errors(body: bytes) -> tuple[Sequence[str], str]:
    """The codes in an error answer, and its text for people."""
    try:
        errors = json.loads(body)["errors"]
        pairs = [(str(e.get("code", "")), str(e.get("message", ""))) for e in errors]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return (), ""  # a proxy's page, most often: the status says enough
    text = "; ".join(": ".join(part for part in pair if part) for pair in pairs)
    printable = "".join(c if c.isprintable() else " " for c in text)
    return tuple(code for code, _ in pairs if code), printable[:_MAX_REASON]


def _causes(err: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = err
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _reason(err: Exception) -> str:
    if isinstance(err, httpx.LocalProtocolError):
        return "a request that HTTP does not allow"  # the text may quote a header
    return (str(err) or type(err).__name__)[:_MAX_REASON]
