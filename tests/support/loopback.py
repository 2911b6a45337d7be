"""Keeps tests on this machine: no traffic leaves loopback, no credentials come from home."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

import pytest

_FOREIGN_VARIABLES = (
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("XDG_STATE_HOME", "MIRROR_STATE_DIR"),
    *("REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "SSL_CERT_FILE", "SSL_CERT_DIR"),
)


class OutsideTrafficError(AssertionError):
    """A test tried to reach another machine. No OSError, so that nobody takes it for one."""


def stay_on_loopback(patch: pytest.MonkeyPatch) -> None:
    """From now on sockets connect to loopback alone, and no other name resolves."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex
    getaddrinfo = socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _check(self, address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        _check(self, address)
        return connect_ex(self, address)

    def guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_local(host) and not _is_address(host):
            # The answer of a machine without DNS, at once and everywhere.
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return getaddrinfo(host, *args, **kwargs)

    patch.setattr(socket.socket, "connect", guarded_connect)
    patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    patch.setattr(socket, "getaddrinfo", guarded_getaddrinfo)


def leave_home(patch: pytest.MonkeyPatch, home: Path) -> None:
    """From now on `home` is the home folder, and no proxy or credential store is configured."""
    for name in _FOREIGN_VARIABLES:
        patch.delenv(name, raising=False)
    patch.setenv("HOME", str(home))
    patch.setenv("DOCKER_CONFIG", str(home / ".docker"))


def _check(sock: socket.socket, address: Any) -> None:
    if sock.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
        raise OutsideTrafficError(f"a test tried to connect to {address}")


def _is_local(host: Any) -> bool:
    if host is None:
        return True
    text = os.fsdecode(host)
    if text in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _is_address(host: Any) -> bool:
    try:
        ipaddress.ip_address(os.fsdecode(host).partition("%")[0])
    except ValueError:
        return False
    return True
