"""How to connect to a registry: time-outs, patience, which proxy to use, whom to trust.

Besides the options, the folders `certs.d` of docker, podman and skopeo count, read as these tools
read them (containers-certs.d(5)): `certs.d/HOST[:PORT]/` has authorities (`*.crt`) and client
certificates (`*.cert`, each with its `*.key`). The first folder that exists for a host decides.
"""

from __future__ import annotations

import base64
import ipaddress
import logging
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from mirror.errors import InputError
from mirror.oci.manifest import MAX_MANIFEST_BYTES
from mirror.registry.addresses import PORTS, Origin
from mirror.registry.retries import RetryPolicy

_log = logging.getLogger(__name__)


@cache
def _user_agent() -> str:
    try:
        return f"mirror/{version('deckhouse-mirror')}"
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "mirror/0"


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A certificate in PEM form and its private key, not encrypted; None: in the same file."""

    cert_file: Path
    key_file: Path | None = None


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
            if scheme not in PORTS or not host:
                raise ValueError("not the address of a proxy")
        except ValueError as err:
            # The text may hold a proxy's password, so it is not repeated.
            raise InputError(
                "the proxy named by HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used "
                f"({type(err).__name__}); write http://host:port"
            ) from None
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        return cls(scheme, host, port or PORTS[scheme], user, password)

    @property
    def name(self) -> str:
        """For messages: `host:port`."""
        return f"{self.host}:{self.port}"

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


# -- TLS with one host -----------------------------------------------------------------------------

SYSTEM_FOLDERS = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
_CERTIFICATE, _KEY = b"CERTIFICATE-----", b"PRIVATE KEY-----"


class HostFiles(NamedTuple):
    """What a folder `certs.d` has for a host."""

    authorities: tuple[Path, ...] = ()
    certificates: tuple[ClientCertificate, ...] = ()

    @classmethod
    def of(cls, origin: Origin) -> HostFiles:
        """Those for `origin`, in the order of their names.

        Raises:
            InputError: a certificate is there without its key.
        """
        for folder in _folders(origin):
            try:
                files = sorted(folder.iterdir())
            except OSError as err:  # mostly it does not exist; one of another user is not for us
                if not isinstance(err, FileNotFoundError):
                    _log.debug("%s is passed over: %s", folder, err)
                continue
            _log.debug("%s: using the certificates in %s", origin.host, folder)
            pairs = [ClientCertificate(one, _key_of(one)) for one in files if one.suffix == ".cert"]
            return cls(tuple(one for one in files if one.suffix == ".crt"), tuple(pairs))
        return cls()


NO_FILES = HostFiles()


def _folders(origin: Origin) -> Iterator[Path]:
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    names = [f"{host}:{origin.port}"]
    if origin.port == PORTS.get(origin.scheme):
        names.append(host)
    roots = list(SYSTEM_FOLDERS)
    with suppress(RuntimeError):  # a user whom nobody told where home is
        config = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
        roots.insert(0, config / "containers" / "certs.d")
    for root in roots:
        yield from (root / name for name in names)


def _key_of(certificate: Path) -> Path:
    key = certificate.with_suffix(".key")
    if not key.is_file():
        raise InputError(
            f"{certificate}: its private key is missing; put it beside the certificate as "
            f"{key.name}, or take the certificate away"
        )
    return key


def tls_context(
    options: ConnectionOptions, files: HostFiles = NO_FILES, *, ours: bool = True
) -> ssl.SSLContext:
    """Build what decides whom to trust at a host, and what to show there.

    The system's roots are the default, not those packed with a Python library: a closed
    environment adds its authority with `update-ca-certificates`, and every other tool on the
    machine honours that. OpenSSL itself reads `SSL_CERT_FILE` and `SSL_CERT_DIR`. Only a system
    without any roots (a bare container image) gets the packed ones.

    `files` are those of `certs.d`. `ours` says that the certificate of `options` is for this host;
    it takes the place of those in `files`.

    Raises:
        InputError: a file cannot be read, holds no certificate, or a key does not fit.
    """
    if not options.verify:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # to load roots takes 25 ms
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif not _system_has_roots():
        _log.debug("this system has no certificate authorities; using those packed with httpx")
        from httpx import create_ssl_context  # it takes a while to load

        context = create_ssl_context(trust_env=False)
    else:
        context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if options.verify:
        for path in files.authorities:
            _trust_file(context, path, str(path))
        if options.ca_file is not None:
            _trust_file(context, options.ca_file, f"--ca {options.ca_file}")
        if options.ca is not None:
            _trust_text(context, options.ca)
    if ours and options.certificate is not None:
        _show(context, options.certificate, "--cert ", "--key ")
    else:
        for certificate in files.certificates:
            _show(context, certificate)
    return context


def _show(
    context: ssl.SSLContext, certificate: ClientCertificate, cert_flag: str = "", key_flag: str = ""
) -> None:
    """Prove who we are by `certificate`; what is wrong with it is told by the names of flags."""
    cert, key = certificate.cert_file, certificate.key_file or certificate.cert_file
    cert_name, key_name = f"{cert_flag}{cert}", f"{key_flag}{key}"
    if _CERTIFICATE not in (text := _read(cert, cert_name)):
        found = "has a private key; were the two mixed up?" if _KEY in text else "has none in PEM"
        raise InputError(f"{cert_name}: a certificate is needed, and this file {found}")
    text = _read(key, key_name)
    if certificate.key_file is None and _KEY not in text:
        raise InputError(f"{cert_name}: its private key is not in it; name the key's file by --key")
    if _KEY not in text:
        found = "a certificate; were the two mixed up?" if _CERTIFICATE in text else "none in PEM"
        raise InputError(f"{key_name}: a private key is needed, and this file has {found}")
    if b"ENCRYPTED" in text:
        raise InputError(
            f"{key_name}: the private key is encrypted, and nobody may be there to type its "
            f"passphrase; write it unencrypted: openssl pkey -in {key} -out PLAIN.key"
        )
    try:
        context.load_cert_chain(cert, key, password=b"")
    except ssl.SSLError as err:
        if "MISMATCH" in (err.reason or ""):
            raise InputError(
                f"{key_name}: it is not the key of the certificate in {cert}; give the two that "
                "were issued together"
            ) from err
        raise InputError(f"{cert_name}: certificate or key is damaged: {err.reason}") from err


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise InputError(f"{name}: {err.strerror or err}") from err


def _trust_file(context: ssl.SSLContext, path: Path, name: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as err:
        raise InputError(
            f"{name}: no certificate in PEM form "
            "(-----BEGIN CERTIFICATE-----) could be read from it"
        ) from err
    except OSError as err:
        raise InputError(f"{name}: {err.strerror or err}") from err


def _trust_text(context: ssl.SSLContext, pem: str) -> None:
    try:
        # Remarks between certificates may be in any language.
        context.load_verify_locations(cadata=pem.encode("ascii", "ignore").decode())
    except (ssl.SSLError, ValueError) as err:  # ValueError: empty
        raise InputError(
            "the certificate authority that was given as text is not a certificate in PEM form "
            "(-----BEGIN CERTIFICATE-----)"
        ) from err


def _system_has_roots() -> bool:
    paths = ssl.get_default_verify_paths()
    if paths.openssl_cafile_env in os.environ or paths.openssl_capath_env in os.environ:
        return True  # an explicit choice, even of nothing, is not to be widened
    if paths.cafile and Path(paths.cafile).is_file():
        return True
    return bool(paths.capath and any(Path(paths.capath).glob("*.[0-9]")))
