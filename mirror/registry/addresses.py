"""Addresses that a registry names in its answers: what they mean, and where we let them lead us.

SECURITY.md has the policy, "Addresses and credentials".
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit, urlunsplit

from mirror.errors import RegistryError

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
        """That of `url`.

        Raises:
            ValueError: the URL is malformed.
        """
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
    """The origin of an address that an answer named, if a request can be sent there.

    Raises:
        ValueError: it cannot.
    """
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

    Raises:
        ValueError: as `Origin.of`.
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

        Raises:
            RegistryError: it is not an address.
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
