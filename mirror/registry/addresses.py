"""Addresses that answers name: where they lead, and whether credentials may follow."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit, urlunsplit

from mirror.errors import RegistryError

_PORTS = {"http": 80, "https": 443}


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: what two URLs must share for credentials to follow.

    Raises:
        ValueError: the URL is malformed.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(scheme)


def path_of(url: str) -> str:
    """`url` without its query, for messages."""
    parts = urlsplit(url)
    return f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


class Home:
    """The registry `host` at `base` (scheme, host and port), the only place for its credentials."""

    def __init__(self, host: str, base: str) -> None:
        self._host, self._base, self._origin = host, base, origin(base)

    def holds(self, url: str) -> bool:
        """Whether `url` has the registry's own scheme, host and port."""
        try:
            return origin(url) == self._origin
        except ValueError:
            return False

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
            scheme, host, port = origin(joined)
            if scheme not in _PORTS or not host:
                raise ValueError("neither http nor https")
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
