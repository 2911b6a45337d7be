"""Connections to servers: opened, kept while they are of use, and closed together.

No redirect is followed and no cookie is known: one kept by accident makes some registries treat the
program as a browser and want CSRF tokens of it.
"""

from __future__ import annotations

import ipaddress
import os
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import quote
from urllib.request import getproxies

from mirror.registry.answers import Response
from mirror.registry.hosts import (
    NO_FILES,
    PORTS,
    HostFiles,
    Origin,
    Proxy,
    is_inner,
    proxy_for,
    tls_context,
)
from mirror.registry.http1 import (
    SLICE_S,
    Body,
    Connection,
    Patience,
    Stream,
    Wait,
    WireError,
    WireFault,
)
from mirror.registry.options import ConnectionOptions

_IDLE_S = 30.0
_FIRST_READ = 64 << 10
_SAFE = ("GET", "HEAD")
_TARGET = re.compile(r"[!-~]*")
_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))
_ADDRESS = re.compile(r"(https?://[^/?#]+)([^#]*)(?:#.*)?", re.IGNORECASE | re.DOTALL)

Result = TypeVar("Result")
Address: TypeAlias = tuple[Any, ...]
Resolved: TypeAlias = tuple[int, Address]
"""An address family, and an address as sockets have it."""


@contextmanager
def _blaming(proxy: str | None) -> Generator[None, None, None]:
    """What fails in the block is the fault of `proxy`, where there is one."""
    try:
        yield
    except WireError as err:
        err.proxy = proxy
        raise


class _Destination(NamedTuple):
    """How to get to a server, and what it is called in a request."""

    origin: Origin
    proxy: Proxy | None
    host: str


class Connections:
    """Connections to all hosts that requests go to, direct or through a proxy; thread-safe.

    Their number is not limited here: whoever sends requests limits it. `home` is the registry
    itself. Wherever else its answers lead, a host in a private network is only connected to if
    `home` is in one, too, or if the options trust that host.

    Raises:
        InputError: a certificate or the environment's proxy cannot be used.
    """

    def __init__(self, options: ConnectionOptions, home: Origin) -> None:
        self._proxies = getproxies()
        for scheme in ("http", "https", "all"):
            if address := self._proxies.get(scheme):
                Proxy.parse(address)
        self._options = options
        self._routes: dict[str, _Destination] = {}
        self._home = home
        self._home_is_inner: bool | None = None  # once it was asked
        self.certificate_end: float | None = None
        """When the certificate that `home` showed last ends, in seconds since 1970, if verified."""
        self._lock = threading.Lock()  # guards the next five
        self._contexts: dict[Origin | None, ssl.SSLContext] = {}
        if home.scheme == "https" or options.ca_file or options.ca or options.certificate:
            self._tls(home)
        self._idle: dict[Origin, list[Connection]] = {}
        self._busy: set[Connection] = set()
        self._is_closed, self._pid = False, os.getpid()

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Body | None,
        patience: Patience,
    ) -> Response:
        """Send a request and return the answer, its body unread; raises WireError."""
        try:
            match = _ADDRESS.fullmatch(url)
            if match is None:
                raise WireError(WireFault.UNSENDABLE, "an address that is not of the web")
            server, target = match.groups()
            route = self._routes.get(server) or self._route(server)
            if not target.startswith("/"):
                target = f"/{target}"
            if route.proxy is not None and route.origin.scheme == "http":
                target = server + target
                headers = {**headers, **route.proxy.headers}
            head = head_of(method, target, route.host, headers)
            kept = self._kept(route.origin)
            while True:
                connection = kept or self._opened(route, patience)
                try:
                    connection.send(head, body, patience)
                    return Response(connection, method, url, headers.get("Authorization"))
                except BaseException as err:
                    connection.done(keep=False)
                    # The server may have closed a kept connection just as the request was sent.
                    closed = isinstance(err, WireError) and err.fault is WireFault.BROKEN
                    if kept is None or not closed or connection.is_answered or method not in _SAFE:
                        raise
                    kept = None
        except WireError as err:
            err.url = url
            raise

    def close(self) -> None:
        """End all connections; requests under way fail."""
        with self._lock:
            self._is_closed = True
            idle = [one for kept in self._idle.values() for one in kept]
            self._idle.clear()
            for one in self._busy:
                one.stream.interrupt()
        for one in idle:
            one.stream.close()

    def _route(self, server: str) -> _Destination:
        try:
            origin = Origin.of(server)
            host = origin.host.encode("idna").decode() if not origin.host.isascii() else origin.host
        except ValueError as err:
            raise WireError(WireFault.UNSENDABLE, "an address that is not of the web") from err
        address = proxy_for(*origin, self._proxies)
        name = f"[{host}]" if ":" in host else host
        if origin.port != PORTS[origin.scheme]:
            name += f":{origin.port}"
        route = _Destination(
            origin._replace(host=host), Proxy.parse(address) if address else None, name
        )
        self._routes[server] = route
        return route

    def _kept(self, origin: Origin) -> Connection | None:
        while True:
            with self._lock:
                if self._pid != os.getpid():  # in a fork, whose parent goes on with them
                    self._pid = os.getpid()
                    while self._idle:
                        for one in self._idle.popitem()[1]:
                            one.stream.close()
                idle = self._idle.get(origin)
                if not idle:
                    return None
                connection = idle.pop()
                self._busy.add(connection)
            aged = time.monotonic() - connection.idle_since > _IDLE_S
            if not aged and not connection.stream.is_stale():
                return connection
            self._done(connection, origin, keep=False)

    def _opened(self, route: _Destination, patience: Patience) -> Connection:
        origin, proxy, _ = route
        wait = Wait(patience.connect_s, patience.check)
        if proxy is None:
            addresses = resolved(origin.host, origin.port or 0, wait)
            self._check(origin, [address[0] for _, address in addresses], wait)
            stream = connected(addresses, wait)
        else:
            with suppress(ValueError):  # a name, which the proxy resolves
                ipaddress.ip_address(origin.host)
                self._check(origin, [origin.host], wait)
            with _blaming(proxy.name):
                stream = connected(resolved(proxy.host, proxy.port, wait), wait)
        try:
            with _blaming(proxy.name if proxy is not None else None):
                if proxy is not None and proxy.scheme == "https":
                    stream = _encrypted(stream, self._tls(None), proxy.host, wait)
                if proxy is not None and origin.scheme == "https":
                    _tunnel(stream, proxy, origin, patience)
            if origin.scheme == "https":
                stream = _encrypted(stream, self._tls(origin), origin.host, wait)
                if origin == self._home:
                    shown: Any = getattr(stream.sock, "getpeercert", dict)()
                    ends = ssl.cert_time_to_seconds(shown["notAfter"]) if shown else None
                    self.certificate_end = ends
            connection = Connection(stream, lambda one, keep: self._done(one, origin, keep=keep))
            with self._lock:
                if self._is_closed:
                    raise WireError(WireFault.BROKEN, "the connection was closed")
                self._busy.add(connection)
        except BaseException:
            stream.close()
            raise
        return connection

    def _done(self, connection: Connection, origin: Origin, *, keep: bool) -> None:
        aged: list[Connection] = []
        with self._lock:
            self._busy.discard(connection)
            if keep and not self._is_closed:
                connection.idle_since = now = time.monotonic()
                for kept in self._idle.values():  # of hosts that nobody asks any more, too
                    while kept and now - kept[0].idle_since > _IDLE_S:
                        aged.append(kept.pop(0))
                self._idle.setdefault(origin, []).append(connection)
            else:
                aged.append(connection)
        for one in aged:
            one.stream.close()

    def _check(self, origin: Origin, addresses: Sequence[str], wait: Wait) -> None:
        """Refuse to be led into a private network by a registry that is outside of it."""
        home = self._home
        if origin.host in (home.host, *self._options.trusted_hosts):
            return
        inner = [address for address in addresses if is_inner(address)]
        if inner and not self._is_home_inner(wait):
            raise WireError(WireFault.INNER, inner[0])

    def _is_home_inner(self, wait: Wait) -> bool:
        """Whether the registry itself is in a private network; behind a proxy it is not."""
        if self._home_is_inner is None:
            found: list[Resolved] = []
            if proxy_for(*self._home, self._proxies) is None:
                found = resolved(self._home.host, self._home.port or 0, wait)
            self._home_is_inner = any(is_inner(address[0]) for _, address in found)
        return self._home_is_inner

    def _tls(self, origin: Origin | None) -> ssl.SSLContext:
        """What to use with `origin`; None: a host that shows us nothing but its own certificate."""
        with self._lock:
            if (context := self._contexts.get(origin)) is not None:
                return context
            files = NO_FILES if origin is None else HostFiles.of(origin)
            context = tls_context(self._options, files, ours=origin == self._home)
            self._contexts[origin] = context
            return context


def head_of(method: str, target: str, host: str, headers: Mapping[str, str]) -> bytes:
    if _TARGET.fullmatch(target) is None:
        target = quote(target, safe=_PRINTABLE)
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    text = "\r\n".join([*lines, "", ""])
    ends = len(lines) + 1
    if text.count("\n") != ends or text.count("\r") != ends or "\0" in text or not text.isascii():
        raise WireError(WireFault.UNSENDABLE, "")  # the text may hold a secret
    return text.encode()


def _tunnel(stream: Stream, proxy: Proxy, origin: Origin, patience: Patience) -> None:
    """Let `proxy` connect `stream` with `origin`."""
    server = f"[{origin.host}]" if ":" in origin.host else origin.host
    server = f"{server}:{origin.port}"
    connection = Connection(stream, lambda _one, _keep: None)
    connection.send(head_of("CONNECT", server, server, proxy.headers), None, patience)
    status, _, _ = connection.head()
    if not 200 <= status < 300:
        raise WireError(WireFault.PROXY, f"HTTP {status}")


def connected(addresses: Sequence[Resolved], wait: Wait) -> Stream:
    """A connection to a host, one of its addresses after the other, or WireError with the cause."""
    try:
        failure: Exception = OSError("the name has no address")
        for number, (family, address) in enumerate(addresses):
            try:
                share_s = wait.left_s() / (len(addresses) - number)
                return Stream(_connected(family, address, Wait(share_s, wait.check)))
            except (OSError, WireError) as err:
                failure = err
        raise failure
    except OSError as err:
        raise WireError(WireFault.CONNECT, str(err)) from err


def resolved(host: str, port: int, wait: Wait) -> list[Resolved]:
    """The addresses of `host`, in the resolver's order.

    The system's resolver cannot be interrupted, so a thread of its own waits for it. When nobody
    wants the answer any more that thread stays until the resolver gives up. Where the system has no
    thread left, this one waits. Raises WireError with the cause where the host has none.
    """
    answer: futures.Future[list[Resolved]] = futures.Future()

    def resolve() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.set_result([(family, address) for family, _, _, _, address in found])
        except BaseException as err:  # noqa: BLE001 (raised below, by the thread that asked)
            answer.set_exception(err)

    try:
        threading.Thread(target=resolve, name=f"resolve-{host[:40]}", daemon=True).start()
    except RuntimeError:
        resolve()
    while not futures.wait([answer], min(wait.left_s(), SLICE_S)).done:
        wait.check()
    try:
        return answer.result()
    except (OSError, ValueError, OverflowError) as err:  # a name that cannot be
        raise WireError(WireFault.CONNECT, str(err)) from err


def _connected(family: int, address: Address, wait: Wait) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(BlockingIOError):
            sock.connect(address)
        while not wait.slice(sock, select.POLLOUT):
            pass
        if failed := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(failed, os.strerror(failed))
    except BaseException:
        sock.close()
        raise
    return sock


def _encrypted(stream: Stream, context: ssl.SSLContext, host: str, wait: Wait) -> Stream:
    """The same connection with TLS. `stream` is not to be used any more, but may be closed."""
    try:
        sock: Any = (
            context.wrap_socket(stream.sock, server_hostname=host, do_handshake_on_connect=False)
            if stream.is_plain
            else _TlsInTls(stream.sock, context, host)
        )
        stream.sock = sock
        outer = Stream(sock)
        outer.attempt(sock.do_handshake, select.POLLIN, wait)
    except ValueError as err:  # a name that no certificate can have
        raise WireError(WireFault.CONNECT, str(err)) from err
    return outer


class _TlsInTls:
    """TLS inside of TLS, for `Stream`: to a registry through a proxy that is reached by TLS."""

    def __init__(self, outer: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self.outer = outer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._unsent = b""
        self.fileno, self.close = outer.fileno, outer.close
        self.getpeercert = self._tls.getpeercert

    def pending(self) -> int:
        return self._tls.pending() + self._incoming.pending

    def recv(self, most: int) -> bytes:
        return self._do(partial(self._tls.read, most))

    def send(self, data: memoryview) -> int:
        self._flush()
        return self._do(partial(self._tls.write, data))

    def do_handshake(self) -> None:
        self._do(self._tls.do_handshake)

    def _do(self, action: Callable[[], Result]) -> Result:
        while True:
            try:
                result = action()
            except ssl.SSLWantReadError:
                self._flush()
                if received := self.outer.recv(_FIRST_READ):
                    self._incoming.write(received)
                else:
                    self._incoming.write_eof()
                continue
            with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self._flush()  # else with the next
            return result

    def _flush(self) -> None:
        self._unsent += self._outgoing.read()
        while self._unsent:
            self._unsent = self._unsent[self.outer.send(self._unsent) :]
