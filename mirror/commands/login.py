"""How a command line says that registries are reached: logins, trust, keys."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mirror.errors import InputError
from mirror.oci import Repository
from mirror.registry import ConnectionOptions, Credentials, find_credentials

_LICENSE_LOGIN = "license-token"
STANDARD_INPUT = "-"


@dataclass(frozen=True, slots=True)
class AccessOptions:
    """What `options.registry` says: how to reach whichever registry a command is about."""

    login: str | None = None
    password: str | None = field(default=None, repr=False)
    modules_path_suffix: str = ""
    insecure: bool = False
    tls_skip_verify: bool = False
    ca: Path | None = None
    limit_rate: float | None = None

    def connection(self) -> ConnectionOptions:
        """The same for a client."""
        return ConnectionOptions(
            plain_http=self.insecure,
            verify=not self.tls_skip_verify,
            ca_file=self.ca,
            limit_rate=self.limit_rate,
        )

    def credentials(self, name: str) -> Credentials | None:
        """The login at `host` or `host/path`, given or stored; None means anonymous."""
        return credentials_for(name, self.login, self.password)

    def given_credentials(self, host: str) -> Credentials | None:
        """The login at `host` if the command line has one; stored ones do not count."""
        return self.credentials(host) if self.login or self.password else None


@dataclass(frozen=True, slots=True)
class Reached:
    """A registry's repository and all that is needed to speak with it."""

    root: Repository
    options: ConnectionOptions
    credentials: Credentials | None


def credentials_for(name: str, login: str | None, password: str | None) -> Credentials | None:
    """What the user gave, or what docker or oras stored for `host` or `host/path`."""
    host = name.partition("/")[0]
    password = _read(password, f"Password of {login} at {host}: " if login else "Password: ")
    if login:
        if not password:
            raise InputError(f"a password for {login} is missing; a login goes with a password")
        return Credentials(login, password)
    if password:
        raise InputError("a password was given without a login; name the user too")
    return find_credentials(name)


def license_credentials(license_key: str) -> Credentials:
    """The login that a licence key stands for."""
    key = _read(license_key, "Licence key: ")
    if not key:
        raise InputError("--license - found no key on standard input")
    return Credentials(_LICENSE_LOGIN, key)


def signer(key_file: Path) -> Callable[[bytes], bytes]:
    """Signs with the private key in a file. It is tried at once, before a long pull begins.

    Raises:
        InputError: no usable private key, or its passphrase is missing or wrong.
    """
    from mirror.bundle.signing import passphrase_from, sign

    key = key_file.read_bytes()
    answers: list[str] = []
    ask = passphrase_from(
        prompt=(lambda: getpass.getpass(f"Passphrase of {key_file}: "))
        if sys.stdin.isatty()
        else None
    )

    def passphrase() -> str:
        if not answers:
            answers.append(ask())
        return answers[0]

    sign(b"", key, passphrase)
    return lambda data: sign(data, key, passphrase)


def _read(secret: str | None, prompt: str) -> str | None:
    """`secret` itself, or in place of `-` what is typed unseen, or the first line of a pipe."""
    if secret != STANDARD_INPUT:
        return secret
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    try:
        return getpass.getpass(prompt)
    except EOFError:
        return ""
