"""The registries that a command line names: logins, trust, keys, and how to reach them."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from mirror.commands.options import (
    FILE,
    file_option,
    flag,
    given_by,
    grouped,
    option,
    repeatable,
    warn_at_start,
)
from mirror.commands.process import PROFILE, Profile, tell
from mirror.documents import parse_duration, parse_rate
from mirror.errors import InputError, InvalidReferenceError
from mirror.events import OnEvent
from mirror.layout import normalised_suffix
from mirror.oci import Repository
from mirror.registry import ConnectionOptions, Credentials, RegistryClient, find_credentials
from mirror.registry.options import BRIEF, ClientCertificate, patience
from mirror.sync.statement import StatementKeys
from mirror.sync.tree import RegistryTree

if TYPE_CHECKING:
    from mirror.commands.cluster import Cluster

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
    cert: Path | None = None
    cert_key: Path | None = None
    trust_host: Sequence[str] = ()
    limit_rate: float | None = None
    retry_for: float | None = None
    same_login: bool = False
    whose: str = "registry"
    meant_for: frozenset[str] | None = None  # the hosts that a profile's login is for; None: all

    def connection(self) -> ConnectionOptions:
        """The same for a client."""
        if self.cert_key is not None and self.cert is None:
            raise InputError("--cert-key goes with --cert, the certificate that it belongs to")
        return ConnectionOptions(
            plain_http=self.insecure,
            verify=not self.tls_skip_verify,
            ca_file=self.ca,
            certificate=ClientCertificate(self.cert, self.cert_key) if self.cert else None,
            trusted_hosts=frozenset(map(_host, self.trust_host)),
            limit_rate=self.limit_rate,
            retries=patience(self.retry_for),
        )

    def credentials(self, name: str) -> Credentials | None:
        """The login at `host` or `host/path`: what the user gave, or what docker or oras stored.

        A password that is missing is asked for, where somebody sits at a terminal. None means
        anonymous.
        """
        login, password, option = self.login, self.password, f"--{self.whose}-password"
        if login and password is None and sys.stdin.isatty():
            password = _STANDARD_INPUT
        whose = f"Password of {login} at {name.partition('/')[0]}: " if login else "Password: "
        password = read_secret(password, whose)
        if login and not password:
            raise InputError(
                f"a password for {login} is missing; give it by {option} - (which asks for it, or "
                f"reads a pipe) or by {_variable(option)}"
            )
        if password and not login:
            raise InputError("a password was given without a login; name the user too")
        return Credentials(login, password) if login and password else find_credentials(name)

    def given_credentials(self, host: str) -> Credentials | None:
        """The login at `host` if the command line has one; stored ones do not count."""
        return self.credentials(host) if self.login or self.password else None

    def root(self, text: str) -> Repository:
        """The registry and path that `text` names. InputError: TLS there, and plain HTTP here."""
        if self.insecure and text.strip().startswith("https://"):
            raise InputError(
                f"{text} asks for TLS and --insecure for plain HTTP; leave out one of the two"
            )
        return Repository.parse(text)

    def without_login(self) -> AccessOptions:
        """The same without what one registry alone is to see."""
        return replace(self, login=None, password=None, cert=None, cert_key=None)

    def check_for_one(self, names: Iterable[str]) -> None:
        """Raise InputError if a login for one host would go to the several that `names` are at."""
        hosts = sorted({self.root(name).host for name in names})
        given = self.meant_for is None and (self.login or self.password or self.cert)
        if len(hosts) > 1 and not self.same_login and given:
            raise InputError(
                f"a login or certificate is given, and {len(hosts)} registries are named: "
                f"{', '.join(hosts)}. It would go to each of them; if it is meant for all, say so "
                "with --same-login, else store a login for each with `docker login`"
            )

    def to(self, root: Repository | str) -> TreeAccess:
        """The tree below `root` (host[:port]/path), reached in this way."""
        root = self.root(root) if isinstance(root, str) else root
        own = self
        if self.meant_for is not None and root.host not in self.meant_for:
            own = self.without_login()
            named = ", ".join(sorted(self.meant_for))
            tell(f"the profile's login is for {named}, and not for {root.host}", "warning")
        return own.tree(root, own.connection(), own.credentials(str(root)))

    def tree(
        self, root: Repository, connection: ConnectionOptions, credentials: Credentials | None
    ) -> TreeAccess:
        """The tree below `root`, reached in another way."""
        suffix = normalised_suffix(self.modules_path_suffix)
        return TreeAccess(root, suffix, connection, credentials)


def access_options(**values: Any) -> AccessOptions:
    """What the options `registry` say; a profile's login is for the hosts that it names."""
    return AccessOptions(**values, meant_for=profile_hosts())


def profile_hosts() -> frozenset[str] | None:
    """The hosts that the profile names, if it names some and gives a login or certificate."""
    if not given_by(ParameterSource.DEFAULT_MAP, "login", "password", "license_key", "cert"):
        return None
    profile: Profile = click.get_current_context().meta[PROFILE]
    return profile.hosts or None


def signer(key_file: Path | None) -> tuple[Callable[[bytes], bytes] | None, bytes | None]:
    """What signs with the private key in a file, and its public half; nothing without a file.

    The key is tried at once, before a long pull begins.
    """
    if key_file is None:
        return None, None
    from mirror.signing import passphrase_from, public_half, sign

    key, asked = key_file.read_bytes(), f"Passphrase of {key_file}: "
    prompt = partial(getpass.getpass, asked) if sys.stdin.isatty() else None
    passphrase = cache(passphrase_from(prompt=prompt))
    return lambda data: sign(data, key, passphrase), public_half(key, passphrase)


def statement_keys(
    trusted_key: Sequence[Path] = (), sign_key: Path | None = None, allow_downgrade: bool = False
) -> StatementKeys:
    """What the options `keys` say."""
    sign, own = signer(sign_key)
    trusted = tuple(one.read_bytes() for one in trusted_key)
    return StatementKeys(sign, trusted, allow_downgrade, own)


def read_secret(secret: str | None, prompt: str) -> str | None:
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


def _host(text: str) -> str:
    """The name of a host, without its port."""
    try:
        host = Repository.parse(f"{text.strip().lower()}/any").host
    except InvalidReferenceError:
        raise InputError(f"--trust-host {text}: write the name or address of a host") from None
    return urlsplit(f"//{host}").hostname or host


def secret(_ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """`value`, with a warning if everybody on this machine can see it."""
    typed = given_by(ParameterSource.COMMANDLINE, option.name)
    if typed and value and value != _STANDARD_INPUT:
        name = max(option.opts, key=len)
        warn_at_start(
            "secret",
            f"what {name} was given shows in the process list and in the shell's history; better "
            f"give it as `{name} -`, which asks for it or reads it from a pipe, or by "
            f"{option.envvar}, or store it with `docker login`",
        )
    return value


def login_options(whose: str, text: str, *more: Sequence[str]) -> dict[str, Any]:
    """`--WHOSE-login` and `--WHOSE-password`, with `more` names of each."""
    user_names, password_names = more or ((), ())
    unseen = (
        "Its password; '-' asks for it or reads it from a pipe, so that no process list shows it."
    )
    return {
        "login": from_environment(text, f"--{whose}-login", *user_names),
        "password": from_environment(
            unseen, f"--{whose}-password", *password_names, callback=secret
        ),
    }


def _variable(name: str) -> str:
    return "D8_MIRROR_" + name.removeprefix("--").replace("-", "_").upper()


def from_environment(text: str, name: str, *more: str, variable: str = "", **settings: Any) -> Any:
    """An option that an environment variable may give as well."""
    variable = variable or _variable(name)
    return option(text, name, *more, envvar=variable, **settings)


STORED = "without one, the credentials that docker or oras stored."

_ca = {"ca": file_option("PEM file of additional authorities to trust.")}
_registry_options = {
    **login_options("registry", f"User of the registry; {STORED}", ["-u"], ["-p"]),
    "modules_path_suffix": option(
        "Path of the modules below the registry's root.", default="/modules"
    ),
    "insecure": flag("Speak plain HTTP to the registry."),
    "tls_skip_verify": flag("Accept any certificate of the registry."),
    **_ca,
    "cert": from_environment(
        "Certificate (PEM) to show to a registry that asks for one.",
        "--cert",
        variable="D8_MIRROR_REGISTRY_CERT",
        type=FILE,
    ),
    "limit_rate": option(
        "Limit of the traffic with each registry: 20MB/s, 512KiB/s.", read=parse_rate
    ),
    "retry_for": option(
        "How long to wait for a registry that is away or busy before giving up, counted from the "
        "last thing that got through: 30s, 5m, 1h30m.  [default: 5m for a registry that has "
        "answered, a few seconds for one that has not]",
        read=parse_duration,
    ),
    "trust_host": repeatable(
        "Follow the registry to this host although it is in a private network, and send it the "
        "login as the registry's token server although that has no TLS. Repeatable.",
        "--trust-host HOST",
    ),
}


def _registry_access(*more: str, **others: Any) -> Any:
    cert_key = from_environment(
        "Private key (PEM) of --cert, if that file does not have it.",
        "--cert-key",
        *more,
        variable="D8_MIRROR_REGISTRY_KEY",
        type=FILE,
    )
    return grouped(access_options, **_registry_options, cert_key=cert_key, **others)


bundle_access = grouped(
    access_options, insecure=flag("Read a bundle from an address that has no TLS."), **_ca
)
"""How to reach an address where a bundle is read in place, for a command without a registry."""
registry_access = _registry_access("--key")
"""How to reach the registry that a command works on."""
keyed_registry_access = _registry_access()
"""The same for a command whose `--key` is another one."""
registries_access = _registry_access(
    "--key", same_login=flag("The login, or certificate, is meant for all registries named.")
)
"""The same for a command that works on several."""

sign_key_option = file_option(
    "Sign the bundle with this private key (PEM or cosign's). MIRROR_SIGN_PASSWORD or a prompt "
    "gives its passphrase."
)
_KEYS = {
    "sign_key": file_option(
        "Sign what the registry states afterwards with this private key (PEM or cosign's), for "
        "replicas that trust its public half. MIRROR_SIGN_PASSWORD or a prompt gives its "
        "passphrase."
    ),
    "trusted_key": repeatable(
        "Believe only statements of registries that this public key (PEM) signed. Repeatable.",
        type=FILE,
    ),
    "allow_downgrade": flag(
        "Let something older take the place of something newer; with keys, this is refused "
        "otherwise."
    ),
}


def _keys(*names: str) -> Any:
    return grouped(statement_keys, **{name: _KEYS[name] for name in names})


following_keys = _keys("trusted_key", "allow_downgrade")
publishing_keys = _keys("sign_key", "trusted_key")
pushing_keys = _keys(*_KEYS)
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
    def open(self, on_event: OnEvent) -> Iterator[RegistryTree]:
        """The tree, with a client that is closed at the end."""
        with RegistryClient(
            self.root.host, options=self.options, credentials=self.credentials, on_event=on_event
        ) as client:
            yield RegistryTree(client, self.root, self.modules_suffix)


@contextmanager
def open_trees(
    registries: Sequence[str],
    access: AccessOptions,
    on_event: OnEvent,
    *,
    connections: int = 100,
    masters: Mapping[str, TreeAccess] = MappingProxyType({}),
) -> Iterator[list[RegistryTree]]:
    """Clients for all `registries`, closed at the end.

    A registry among a cluster's `masters` is reached as the cluster's settings say. Its login is
    the cluster's, which goes to no other registry.
    """
    if masters:
        access = access.without_login()
    access.check_for_one(name for name in registries if name not in masters)
    with ExitStack() as opened:
        made = []
        for name in registries:
            target = masters.get(name) or access.to(name)
            if target.credentials is not None and access.password == _STANDARD_INPUT:
                # Asked for once, and meant for all.
                access = replace(access, password=target.credentials.password)
            asked = target.options.retries
            brief = replace(BRIEF, retry_for_s=asked.retry_for_s, from_start=asked.from_start)
            options = replace(target.options, retries=brief, max_connections=connections)
            tree = replace(target, options=options).open(on_event)
            made.append(opened.enter_context(tree))
        yield made


# -- clusters --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClusterFiles:
    """The files that describe a cluster; none where a command line names none."""

    module_config: Path | None = None
    sites_file: Path | None = None

    def __bool__(self) -> bool:
        return self.module_config is not None or self.sites_file is not None

    def load(self) -> Cluster | None:
        """The cluster; None without files."""
        if self.module_config is not None:
            from mirror.commands.cluster import Cluster  # with all that knows of modes

            return Cluster.load(self.module_config, self.sites_file)
        if self.sites_file is not None:
            raise InputError("--sites goes with --module-config FILE, which says what mode it is")
        return None

    def reach(self, registry: str | None, access: AccessOptions, *, writes: bool) -> TreeAccess:
        """The tree below `registry`, which may be a logical address, or None for the root."""
        cluster = self.load()
        if cluster is not None:
            return cluster.reach(registry, access, writes=writes)
        if registry is None:
            raise InputError(
                "name the REGISTRY (host[:port]/path), or the cluster's settings with "
                "--module-config FILE"
            )
        return access.to(registry)


def cluster_options(make: Callable[..., object], *, required: bool) -> Any:
    """The options that name a cluster's files; a command gets what `make` makes of them."""
    return grouped(
        make,
        module_config=file_option(
            "YAML file with ModuleConfig deckhouse, which configures the cluster's registry.",
            required=required,
        ),
        sites_file=file_option(
            "With --module-config: YAML file with the cluster's masters, users, CA and public "
            "domain.",
            "--sites",
        ),
    )


cluster_files = cluster_options(ClusterFiles, required=False)
"""How to find the registry of a cluster by its own settings."""
