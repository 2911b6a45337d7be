"""The registries that a command line names: logins, trust, keys, and how to reach them."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import click

from mirror.commands.options import FILE, Decorator, flag, grouped, together
from mirror.documents import parse_rate
from mirror.errors import FileSystemError, InputError
from mirror.events import OnEvent, Warned
from mirror.layout import normalised_suffix
from mirror.oci import Repository
from mirror.registry import (
    ConnectionOptions,
    Credentials,
    RegistryClient,
    UploadJournal,
    find_credentials,
)
from mirror.registry.options import BRIEF
from mirror.sync.statement import UNSIGNED, StatementKeys
from mirror.sync.tree import RegistryTree

_LICENSE_LOGIN = "license-token"
_STANDARD_INPUT = "-"


@dataclass(frozen=True, slots=True)
class AccessOptions:
    """How to reach whichever registry a command is about: what the options `registry` say."""

    login: str | None = None
    password: str | None = field(default=None, repr=False)
    modules_path_suffix: str = ""
    insecure: bool = False
    tls_skip_verify: bool = False
    ca: Path | None = None
    limit_rate: float | None = None
    whose: str = "registry"

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
        return credentials_for(name, self.login, self.password, self.whose)

    def given_credentials(self, host: str) -> Credentials | None:
        """The login at `host` if the command line has one; stored ones do not count."""
        return self.credentials(host) if self.login or self.password else None

    def to(self, root: Repository | str) -> TreeAccess:
        """The tree below `root` (host[:port]/path), reached in this way."""
        root = Repository.parse(root) if isinstance(root, str) else root
        suffix = normalised_suffix(self.modules_path_suffix)
        return TreeAccess(root, suffix, self.connection(), self.credentials(str(root)))


def credentials_for(
    name: str, login: str | None = None, password: str | None = None, whose: str = "registry"
) -> Credentials | None:
    """What the user gave, or what docker or oras stored for `host` or `host/path`.

    A password that is missing is asked for, where somebody sits at a terminal.
    """
    host = name.partition("/")[0]
    if login and password is None and sys.stdin.isatty():
        password = _STANDARD_INPUT
    password = _read(password, f"Password of {login} at {host}: " if login else "Password: ")
    if login:
        if not password:
            raise InputError(
                f"a password for {login} is missing; give it by --{whose}-password - (which asks "
                f"for it, or reads a pipe) or by {_variable(f'--{whose}-password')}"
            )
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
    """Signs with the private key in a file. It is tried at once, before a long pull begins."""
    from mirror.signing import passphrase_from, sign

    key = key_file.read_bytes()
    prompt = None
    if sys.stdin.isatty():
        prompt = partial(getpass.getpass, f"Passphrase of {key_file}: ")
    passphrase = cache(passphrase_from(prompt=prompt))
    sign(b"", key, passphrase)
    return lambda data: sign(data, key, passphrase)


def statement_keys(
    trusted_key: Sequence[Path] = (), sign_key: Path | None = None, allow_downgrade: bool = False
) -> StatementKeys:
    """What the options `keys` say."""
    sign = signer(sign_key) if sign_key is not None else None
    return StatementKeys(sign, tuple(one.read_bytes() for one in trusted_key), allow_downgrade)


def _read(secret: str | None, prompt: str) -> str | None:
    """`secret` itself, or in place of `-` what is typed unseen, or the first line of a pipe."""
    if secret != _STANDARD_INPUT:
        return secret
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    try:
        return getpass.getpass(prompt)
    except EOFError:
        return ""


# -- options ---------------------------------------------------------------------------------------


def _rate(_ctx: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else parse_rate(value)
    except ValueError as err:
        raise click.BadParameter(str(err)) from None


def login_options(whose: str, text: str, *more: Sequence[str]) -> Decorator:
    """`--WHOSE-login` and `--WHOSE-password`, with `more` names of each."""
    user_names, password_names = more or ((), ())
    unseen = (
        "Its password; '-' asks for it or reads it from a pipe, so that no process list shows it."
    )
    return together(
        from_environment(f"--{whose}-login", *user_names, text=text),
        from_environment(f"--{whose}-password", *password_names, text=unseen),
    )


def _variable(name: str) -> str:
    return "D8_MIRROR_" + name.removeprefix("--").replace("-", "_").upper()


def from_environment(name: str, *more: str, variable: str = "", text: str) -> Decorator:
    """An option that an environment variable may give as well."""
    variable = variable or _variable(name)
    return click.option(name, *more, envvar=variable, show_envvar=True, help=text)


_STORED = "without one, the credentials that docker or oras stored."

source_login_options = together(
    login_options("source", f"User of the source; {_STORED}", ["login"], ["password"]),
    from_environment(
        "--license",
        "-l",
        "license_key",
        variable="D8_MIRROR_LICENSE_TOKEN",
        text="Deckhouse license key, instead of user and password; '-' as above.",
    ),
)
registry_options = grouped(
    "access",
    AccessOptions,
    login_options(
        "registry", f"User of the registry; {_STORED}", ["-u", "login"], ["-p", "password"]
    ),
    click.option(
        "--modules-path-suffix",
        default="/modules",
        show_default=True,
        help="Path of the modules below the registry's root.",
    ),
    flag("--insecure", text="Speak plain HTTP to the registry."),
    flag("--tls-skip-verify", text="Accept any certificate of the registry."),
    click.option(
        "--ca", type=FILE, help="PEM file of additional certificate authorities to trust."
    ),
    click.option(
        "--limit-rate",
        callback=_rate,
        help="Limit of the traffic with each registry: 20MB/s, 512KiB/s.",
    ),
)
"""How to reach the registry that a command works on."""


_trusted_key = click.option(
    "--trusted-key",
    multiple=True,
    type=FILE,
    help="Believe only statements of registries that this public key (PEM) signed. Repeatable.",
)
_allow_downgrade = flag(
    "--allow-downgrade",
    text="Let something older take the place of something newer, which keys refuse otherwise.",
)
_sign_statement = click.option(
    "--sign-key",
    type=FILE,
    help="Sign what the registry states afterwards with this private key (PEM or cosign's), for "
    "replicas that trust its public half. MIRROR_SIGN_PASSWORD or a prompt gives its passphrase.",
)
following_keys = grouped("keys", statement_keys, _trusted_key, _allow_downgrade)
publishing_keys = grouped("keys", statement_keys, _sign_statement, _trusted_key)
pushing_keys = grouped("keys", statement_keys, _sign_statement, _trusted_key, _allow_downgrade)
"""Whose statements are believed, and how those are signed that a command publishes."""


# -- trees -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TreeAccess:
    """A registry's tree that a command is about, and how to reach it."""

    root: Repository
    modules_suffix: str
    options: ConnectionOptions
    credentials: Credentials | None

    @contextmanager
    def open(self, on_event: OnEvent, *, storage: Path | None = None) -> Iterator[RegistryTree]:
        """The tree, with a client that is closed at the end."""
        with RegistryClient(
            self.root.host, options=self.options, credentials=self.credentials, on_event=on_event
        ) as client:
            yield RegistryTree(client, self.root, self.modules_suffix, storage)

    @contextmanager
    def open_for_uploads(self, on_event: OnEvent, state_dir: Path | None) -> Iterator[RegistryTree]:
        """The same, with a journal of uploads."""
        with (
            self.open(on_event) as tree,
            upload_journal(state_dir, self.root.host, on_event) as journal,
        ):
            yield replace(tree, journal=journal)


@contextmanager
def upload_journal(
    state_dir: Path | None, host: str, on_event: OnEvent
) -> Iterator[UploadJournal | None]:
    """The journal of uploads to `host`; None where the default folder cannot be written to.

    Raises:
        FileSystemError: `state_dir`, which somebody asked for, cannot be used.
    """
    with ExitStack() as opened:
        journal: UploadJournal | None = None
        try:
            folder = state_dir or _default_state_dir()
            journal = opened.enter_context(UploadJournal(folder / "uploads", host))
        except FileSystemError as err:
            if state_dir is not None:
                raise
            on_event(Warned(str(err)))
        yield journal


def _default_state_dir() -> Path:
    """Where the XDG base directory specification puts what is to survive a restart."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # The specification has relative paths ignored.
    try:
        return (Path(base) if base.startswith("/") else Path.home() / ".local/state") / "mirror"
    except RuntimeError as err:
        raise FileSystemError(
            "this user has no home directory; uploads under way are not written down, name a "
            "folder with --state-dir"
        ) from err


@contextmanager
def open_trees(
    registries: Sequence[str],
    access: AccessOptions,
    on_event: OnEvent,
    *,
    storage: Mapping[str, Path] | None = None,
    keys: StatementKeys = UNSIGNED,
    connections: int = 100,
    masters: Mapping[str, TreeAccess] | None = None,
) -> Iterator[list[RegistryTree]]:
    """Clients for all `registries`, closed at the end.

    A registry among a cluster's `masters` is reached as the cluster's settings say. Its login is
    the cluster's, which goes to no other registry.
    """
    if masters:
        access = replace(access, login=None, password=None)
    with ExitStack() as opened:
        made = []
        for name in registries:
            target = (masters or {}).get(name) or access.to(name)
            if target.credentials is not None and access.password == _STANDARD_INPUT:
                # Asked for once, and meant for all.
                access = replace(access, password=target.credentials.password)
            options = replace(target.options, retries=BRIEF, max_connections=connections)
            tree = replace(target, options=options).open(
                on_event, storage=(storage or {}).get(name)
            )
            made.append(replace(opened.enter_context(tree), keys=keys))
        yield made
