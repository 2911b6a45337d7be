"""Hosts: what the addresses of answers mean, how to get there, and whom to trust there.

SECURITY.md has the policy, "Addresses and credentials". Besides the options, the folders `certs.d`
of docker, podman and skopeo count, read as these tools read them (containers-certs.d(5)):
`certs.d/HOST[:PORT]/` has authorities (`*.crt`) and client certificates (`*.cert`, each with its
`*.key`). The first folder that exists for a host decides.
"""

from __future__ import annotations

import base64
import ipaddress
import logging
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from mirror.errors import InputError, RegistryError
from mirror.registry.options import ClientCertificate, ConnectionOptions

_log = logging.getLogger(__name__)

PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96").network_address.packed[:12]
_HOST = re.compile(r"[A-Za-z0-9._~-]+|[0-9a-f:.]+")


class Origin(NamedTuple):
    """What two addresses share if they are at one server."""

    scheme: str
    host: str
    port: int | None

    @classmethod
    def of(cls, url: str) -> Origin:
        """That of `url`, or ValueError if it is malformed."""
        parts = urlsplit(url)
        scheme = parts.scheme.lower()
        return cls(scheme, (parts.hostname or "").lower(), parts.port or PORTS.get(scheme))


def is_inner(address: str) -> bool:
    """Whether an IP address is of a private network, of this machine, or of no network at all.

    What IPv6 wraps around an IPv4 address is judged by that one.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        packed = ip.packed
        wrapped = ip.ipv4_mapped or ip.sixtofour
        if packed.startswith(_NAT64) or not any(packed[:12]):  # the latter is obsolete
            wrapped = ipaddress.IPv4Address(packed[12:])
        if wrapped is not None:
            return not wrapped.is_global
    return not ip.is_global


def check_address(url: str) -> Origin:
    """The origin of an address that an answer named, or ValueError if no request can go there."""
    origin = Origin.of(url)
    if origin.scheme not in PORTS or not origin.host:
        raise ValueError("neither http nor https")
    if _HOST.fullmatch(origin.host.encode("idna").decode()) is None:
        raise ValueError("not an address")
    return origin


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
    """

    def __init__(self, host: str, base: str) -> None:
        self._host, self._base, self._origin = host, base, Origin.of(base)

    def holds(self, url: str) -> bool:
        """Whether `url` has that server's own scheme, host and port."""
        try:
            return Origin.of(url) == self._origin
        except ValueError:
            return False

    def trusts(self, url: str) -> bool:
        """Whether credentials may go to `url`: it is here, or the same host reached by TLS."""
        scheme, host, port = self._origin
        usual = (scheme, port) == ("http", PORTS["http"])
        return self.holds(url) or (usual and Home(host, f"https://{host}").holds(url))

    def resolved(self, location: str, base: str) -> str:
        """The absolute address that `location`, relative or not, means in an answer from `base`.

        Registries behind a TLS proxy that they do not know of call themselves `http://`; an
        address at our own host therefore keeps our own scheme and never falls back to plain HTTP.
        What is not an address is a RegistryError.
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


# -- the way there ---------------------------------------------------------------------------------


class Proxy(NamedTuple):
    """A proxy of the environment."""

    scheme: str
    host: str
    port: int
    username: str
    password: str

    @classmethod
    def parse(cls, address: str) -> Proxy:
        """Read `[scheme://][user:password@]host[:port]`, or raise InputError."""
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
        """Those for `origin`, by name; InputError where a certificate is there without its key."""
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
