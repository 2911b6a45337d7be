"""What may stand in a node's configuration: checked before it is written.

Rendered files are read by programs that run as root, and by shell scripts. So a value is written
only if it is exactly what its place is for; quoting by the library that writes the format comes on
top.
"""

from __future__ import annotations

import ipaddress
import re

from mirror.errors import InvalidCertificateError, RenderingError
from mirror.nodeconfig.pki import clean_pem

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII)
_HOST = re.compile(r"[0-9A-Za-z]([0-9A-Za-z.-]*[0-9A-Za-z])?(:[0-9]{1,5})?", re.ASCII)
_REPOSITORY = re.compile(r"[0-9A-Za-z._-]+(/[0-9A-Za-z._-]+)*", re.ASCII)
_PATH = re.compile(r"/[0-9A-Za-z._/:@=+-]*", re.ASCII)
_IMAGE = re.compile(r"[0-9A-Za-z.:/_-]+(@sha256:[0-9a-f]{64})?", re.ASCII)


def node_name(text: str) -> str:
    """A Kubernetes node's name (a DNS subdomain)."""
    if len(text) > 253 or not _NAME.fullmatch(text):
        raise _refused("node name", text, "lower-case letters, digits, '-' and '.', as in master-0")
    return text


def address(text: str, where: str) -> str:
    """An IP address without a port, in its canonical form."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        raise _refused(where, text, "an IP address, as in 10.0.0.1") from None
    if found.is_unspecified or found.is_multicast:
        raise _refused(where, text, "the address of one node")
    return str(found)


def is_address(text: str) -> bool:
    """Whether this is an IP address and no name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def port(number: int, where: str) -> int:
    """A TCP port."""
    if isinstance(number, bool) or not 1 <= number <= 65535:
        raise _refused(where, str(number), "a port from 1 to 65535")
    return number


def host_port(host: str, number: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def registry_host(text: str, where: str) -> str:
    """A registry's host with its port, if it has one."""
    if not _HOST.fullmatch(text) or ".." in text:
        raise _refused(where, text, "host or host:port, as in registry.example:5000")
    if ":" in text:
        port(int(text.rpartition(":")[2]), where)
    return text


def repository_path(text: str, where: str) -> str:
    """The path of a repository without a slash around it; empty is a registry's root."""
    if text and (not _REPOSITORY.fullmatch(text) or {".", ".."} & set(text.split("/"))):
        raise _refused(where, text, "names with '/' between them, as in deckhouse/ee")
    return text


def scheme(text: str, where: str) -> str:
    """`http` or `https`."""
    if text not in {"http", "https"}:
        raise _refused(where, text, "http or https")
    return text


def file_path(text: str, where: str) -> str:
    """An absolute path without anything that a shell or nginx could take for syntax."""
    if not _PATH.fullmatch(text) or ".." in text.split("/"):
        raise _refused(where, text, "an absolute path of letters, digits and . _ - / : @ = +")
    return text


def image(text: str, where: str) -> str:
    """A container's image."""
    if not _IMAGE.fullmatch(text):
        raise _refused(where, text, "an image reference")
    return text


def secret(text: str, where: str) -> str:
    """A user name or password: printable, on one line. The text itself is never repeated."""
    if not text or not text.isprintable():
        raise RenderingError(
            f"{where}: expected printable characters on one line, found "
            f"{'none' if not text else 'a control character'}; correct it in the settings"
        )
    return text


def user_name(text: str, where: str) -> str:
    """A user name, which travels in front of a ':' and therefore holds none."""
    if ":" in secret(text, where):
        raise RenderingError(
            f"{where}: expected a name without ':', which ends the name where credentials are "
            "written together; use another account"
        )
    return text


def authority(pem: str, where: str) -> str:
    """Certificates to trust, as they are written to a file of their own."""
    try:
        return clean_pem(pem, where)
    except InvalidCertificateError as err:
        raise RenderingError(str(err)) from err


def _refused(where: str, found: str, expected: str) -> RenderingError:
    return RenderingError(
        f"{where}: expected {expected}, found {found!r}; correct it and try again"
    )
