"""Connections that `ConnectionOptions` describe: trust, proxies, pooling."""

from __future__ import annotations

import ipaddress
import logging
import os
import ssl
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urljoin, urlsplit, urlunsplit
from urllib.request import getproxies

import httpcore
import httpx

from mirror.errors import InputError, RegistryError
from mirror.registry.options import ConnectionOptions
from mirror.registry.sockets import Backend

_log = logging.getLogger(__name__)

_FAILURES = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)


class Connections(httpx.BaseTransport):
    """A pool of HTTP/1.1 connections, directly or through the environment's proxies; thread-safe.

    An httpx transport over `Backend`. It has no number limit, as whoever sends requests keeps one,
    follows no redirect and knows no cookies: one kept by accident makes some registries treat the
    program as a browser and want CSRF tokens of it.

    Raises:
        InputError: the CA file or the environment's proxy cannot be used.
    """

    def __init__(self, options: ConnectionOptions) -> None:
        self._context = tls_context(options)
        self._proxies = getproxies()
        self._direct = self._pool(None)
        self._by_proxy: dict[str, httpcore.ConnectionPool] = {}
        for scheme in ("http", "https", "all"):
            if (address := self._proxies.get(scheme)) and address not in self._by_proxy:
                self._by_proxy[address] = self._pool(address)
        _quieten()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request` and return the answer, its body unread.

        Raises:
            httpx.TransportError: the network failed; its cause says how.
        """
        url = request.url
        sent = httpcore.Request(
            method=request.method,
            url=httpcore.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        proxy = proxy_for(url.scheme, url.raw_host.decode(), url.port, self._proxies)
        pool = self._direct if proxy is None else self._by_proxy[proxy]
        with _as_httpx(request), _unlogged():
            got = pool.handle_request(sent)
        return httpx.Response(
            got.status, headers=got.headers, stream=_Body(got, request), request=request
        )

    def close(self) -> None:
        """End all connections, those in use included."""
        for pool in (self._direct, *self._by_proxy.values()):
            pool.close()

    def _pool(self, proxy: str | None) -> httpcore.ConnectionPool:
        return httpcore.ConnectionPool(
            ssl_context=self._context,
            proxy=None if proxy is None else _proxy(proxy, self._context),
            max_connections=None,
            max_keepalive_connections=None,
            keepalive_expiry=30.0,
            network_backend=Backend(),
        )


class _Body(httpx.SyncByteStream):
    """The body of an answer, as httpx reads it."""

    def __init__(self, response: httpcore.Response, request: httpx.Request) -> None:
        self._response, self._request = response, request

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx(self._request):
            yield from self._response.iter_stream()

    def close(self) -> None:
        with _as_httpx(self._request):
            self._response.close()


@contextmanager
def _as_httpx(request: httpx.Request) -> Generator[None, None, None]:
    """Errors of httpcore as those of httpx, which has one of the same name for each."""
    try:
        yield
    except _FAILURES as err:
        raise getattr(httpx, type(err).__name__)(str(err), request=request) from err


class _Ours(threading.local):
    """Whether this thread is inside of a request of ours."""

    inside = False


_ours = _Ours()


@contextmanager
def _unlogged() -> Generator[None, None, None]:
    _ours.inside = True
    try:
        yield
    finally:
        _ours.inside = False


def _quieten() -> None:
    """Keep our requests out of httpcore's log: addresses of storage and uploads carry signatures.

    Nothing changes for requests of others in this process, who may want to see theirs.
    """
    for name in ("connection", "http11", "proxy", "socks"):
        logging.getLogger(f"httpcore.{name}").addFilter(_not_ours)


def _not_ours(_record: logging.LogRecord) -> bool:
    return not _ours.inside


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


def _proxy(address: str, context: ssl.SSLContext) -> httpcore.Proxy:
    try:
        proxy = httpx.Proxy(address if "://" in address else f"http://{address}")
        if proxy.url.scheme.startswith("socks") and find_spec("socksio") is None:
            raise ValueError("the package socksio is not installed")
        return httpcore.Proxy(
            url=httpcore.URL(
                scheme=proxy.url.raw_scheme,
                host=proxy.url.raw_host,
                port=proxy.url.port,
                target=proxy.url.raw_path,
            ),
            auth=proxy.raw_auth,
            headers=proxy.headers.raw,
            ssl_context=context if proxy.url.scheme == "https" else None,
        )
    except (ValueError, httpx.InvalidURL) as err:
        # The text may hold a proxy's password, so it is not repeated.
        raise InputError(
            "the proxy named by HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used "
            f"({type(err).__name__}); write http://host:port"
        ) from None


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
        context = httpx.create_ssl_context(trust_env=False)
    else:
        context = ssl.create_default_context()
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


_PORTS = {"http": 80, "https": 443}


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: what two URLs must share for credentials to follow.

    Raises:
        ValueError: the URL is malformed.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(scheme)


def check_address(url: str) -> tuple[str, str, int | None]:
    """The origin of an address that an answer named, if a request can be sent there.

    Raises:
        ValueError: it cannot.
    """
    scheme, host, port = origin(url)
    if scheme not in _PORTS or not host:
        raise ValueError("neither http nor https")
    try:
        httpx.URL(url).host.encode("idna")  # it decodes a name in punycode
    except (httpx.InvalidURL, UnicodeError) as err:
        raise ValueError("not an address") from err
    return scheme, host, port


def host_of(url: str) -> str:
    """The host of `url`, for messages."""
    return urlsplit(url).hostname or ""


def path_of(url: str) -> str:
    """`url` without its query, for messages."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"


class Home:
    """The server at `base` (scheme, host and port), the only place for its credentials.

    `host` is the registry that named it, for messages.

    Raises:
        ValueError: as `origin`.
    """

    def __init__(self, host: str, base: str) -> None:
        self._host, self._base, self._origin = host, base, origin(base)

    def holds(self, url: str) -> bool:
        """Whether `url` has that server's own scheme, host and port."""
        try:
            return origin(url) == self._origin
        except ValueError:
            return False

    def trusts(self, url: str) -> bool:
        """Whether credentials may go to `url`: it is here, or the same host reached by TLS."""
        scheme, host, port = self._origin
        usual = (scheme, port) == ("http", _PORTS["http"])
        return self.holds(url) or (usual and Home(host, f"https://{host}").holds(url))

    def resolved(self, location: str, base: str) -> str:
        """The absolute address that `location`, relative or not, means in an answer from `base`.

        Registries behind a TLS proxy that they do not know of call themselves `http://`; an
        address at our own host therefore keeps our own scheme and never falls back to plain HTTP.

        Raises:
            RegistryError: it is no address.
        """
        try:
            joined = urljoin(base, location)
            parts = urlsplit(joined)
            scheme, host, port = check_address(joined)
        except ValueError as err:
            raise RegistryError(
                f"{self._host} sends an address that cannot be used ({err}); "
                "check the registry's configuration",
                where=self._host,
            ) from err
        home_scheme, home_host, home_port = self._origin
        ours = host == home_host and (port == home_port or parts.port is None)
        if ours and scheme == "http" and home_scheme == "https":
            return urlunsplit(("https", urlsplit(self._base).netloc, *parts[2:]))
        return joined
