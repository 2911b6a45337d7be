"""The registries that a command line names, and how to reach them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from mirror.commands.cluster import Cluster, cluster_of
from mirror.commands.login import credentials_for
from mirror.errors import FileSystemError, InputError
from mirror.events import OnEvent, Warned
from mirror.layout import normalised_suffix
from mirror.modes.constants import REGISTRY_PORT
from mirror.oci import Repository
from mirror.registry import (
    ConnectionOptions,
    Credentials,
    RegistryClient,
    UploadJournal,
)
from mirror.registry.options import BRIEF
from mirror.sync.tree import RegistryTree

_SCHEME_IS_SET = "--insecure does not go with --module-config, which has the scheme"


@dataclass(frozen=True, slots=True)
class TreeAccess:
    """A registry's tree that a command is about, and how to reach it."""

    root: Repository
    modules_suffix: str
    options: ConnectionOptions
    credentials: Credentials | None

    @classmethod
    def of(
        cls,
        root: Repository,
        *,
        login: str | None,
        password: str | None,
        modules_path_suffix: str,
        insecure: bool,
        tls_skip_verify: bool,
        ca: Path | None,
    ) -> Self:
        """What `options.registry` says about `root`."""
        return cls(
            root,
            normalised_suffix(modules_path_suffix),
            ConnectionOptions(plain_http=insecure, verify=not tls_skip_verify, ca_file=ca),
            credentials_for(root.host, login, password),
        )

    @classmethod
    def named(
        cls,
        registry: str | None,
        *,
        module_config: Path | None,
        sites_file: Path | None,
        writes: bool,
        login: str | None,
        password: str | None,
        modules_path_suffix: str,
        insecure: bool,
        tls_skip_verify: bool,
        ca: Path | None,
    ) -> Self:
        """What `options.registry` and `options.cluster` say about `registry`.

        With `--module-config` that may be a logical address, or None for the cluster's own root;
        `writes` says that the target will be changed.

        Raises:
            InputError: no registry is named in either way, or the options contradict each other.
            ForbiddenByModeError: the cluster's mode takes no writes; the message says where.
        """
        cluster = cluster_of(module_config, sites_file)
        if cluster is None:
            if registry is None:
                raise InputError(
                    "name the REGISTRY (host[:port]/path), or the cluster's settings with "
                    "--module-config FILE"
                )
            return cls.of(
                Repository.parse(registry),
                login=login,
                password=password,
                modules_path_suffix=modules_path_suffix,
                insecure=insecure,
                tls_skip_verify=tls_skip_verify,
                ca=ca,
            )
        if insecure:
            raise InputError(_SCHEME_IS_SET)
        reached = cluster.reach(
            registry,
            writes=writes,
            login=login,
            password=password,
            tls_skip_verify=tls_skip_verify,
            ca=ca,
        )
        suffix = normalised_suffix(modules_path_suffix)
        return cls(reached.root, suffix, reached.options, reached.credentials)

    @classmethod
    def replicas(
        cls,
        *,
        module_config: Path,
        sites_file: Path | None,
        login: str | None,
        password: str | None,
        modules_path_suffix: str,
        insecure: bool,
        tls_skip_verify: bool,
        ca: Path | None,
    ) -> list[Self]:
        """The replicas of the cluster in Local mode that the options describe, a target each.

        Raises:
            ForbiddenByModeError: another mode, in which there are none.
            RouteError: the files do not say where they are, or who may write there.
        """
        if insecure:
            raise InputError(_SCHEME_IS_SET)
        cluster = Cluster.load(module_config, sites_file)
        suffix = normalised_suffix(modules_path_suffix)
        return [
            cls(reached.root, suffix, reached.options, reached.credentials)
            for reached in cluster.replicas(
                login=login, password=password, tls_skip_verify=tls_skip_verify, ca=ca
            )
        ]

    @contextmanager
    def open(self, on_event: OnEvent, *, storage: Path | None = None) -> Iterator[RegistryTree]:
        """The tree, with a client that is closed at the end."""
        with RegistryClient(
            self.root.host, options=self.options, credentials=self.credentials, on_event=on_event
        ) as client:
            yield RegistryTree(client, self.root, self.modules_suffix, storage)

    @contextmanager
    def open_for_uploads(self, on_event: OnEvent, state_dir: Path | None) -> Iterator[RegistryTree]:
        """The same, with a journal of uploads.

        Raises:
            FileSystemError: `state_dir`, which somebody asked for, cannot be used.
        """
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
    folder = state_dir or _default_state_dir()
    try:
        journal = UploadJournal(folder / "uploads", host)
    except FileSystemError as err:
        if state_dir is not None:
            raise
        on_event(Warned(str(err)))
        yield None
        return
    with journal:
        yield journal


def _default_state_dir() -> Path:
    """Where the XDG base directory specification puts what is to survive a restart."""
    base = os.environ.get("XDG_STATE_HOME", "")
    # The specification has relative paths ignored.
    return (Path(base) if base.startswith("/") else Path.home() / ".local/state") / "mirror"


@contextmanager
def open_trees(
    registries: Sequence[str],
    on_event: OnEvent,
    *,
    storage: Sequence[tuple[str, Path]] = (),
    connections: int = 100,
    masters: Mapping[str, TreeAccess] | None = None,
    **access: Any,
) -> Iterator[list[RegistryTree]]:
    """Clients for all `registries`, closed at the end; `access` is what `options.registry` says.

    Those that are among a cluster's `masters` are reached as the cluster has it. The login is
    theirs then and goes to no other registry.

    Raises:
        InputError: `storage` is of a registry that is none of them, or a password would be read
            for several at once.
    """
    folders = dict(storage)
    if unknown := sorted(folders.keys() - set(registries)):
        raise InputError(f"--storage {unknown[0]}=…: that registry is none of those to work on")
    password: str | None = None
    if masters:
        access = {**access, "login": None, "password": None}
    with ExitStack() as opened:
        made = []
        for name in registries:
            target = (masters or {}).get(name) or TreeAccess.of(Repository.parse(name), **access)
            if target.credentials is not None and access.get("password") == "-":
                # Asked for once, and meant for all.
                password = target.credentials.password
                access = {**access, "password": password}
            options = replace(target.options, retries=BRIEF, max_connections=connections)
            access_to = replace(target, options=options)
            made.append(opened.enter_context(access_to.open(on_event, storage=folders.get(name))))
        yield made


def masters_of(
    module_config: Path | None, sites_file: Path | None, **access: Any
) -> dict[str, TreeAccess]:
    """The replicas of the cluster that `options.cluster` describes, by name; empty without it.

    Raises:
        InputError: `--sites` came alone.
        ForbiddenByModeError: a mode in which there are none.
        RouteError: the files do not say where they are, or who may write there.
    """
    if module_config is None:
        cluster_of(module_config, sites_file)  # which refuses --sites alone
        return {}
    targets = TreeAccess.replicas(module_config=module_config, sites_file=sites_file, **access)
    return {str(target.root): target for target in targets}


def full_name(name: str, masters: Mapping[str, TreeAccess]) -> str:
    """`name`, or the name of the master that it is a shorter form of: an address, `host:port`."""
    for known, target in masters.items():
        host = target.root.host
        if name in (host, host.removesuffix(f":{REGISTRY_PORT}").strip("[]")):
            return known
    return name


def parse_storage(values: Sequence[str]) -> list[tuple[str, Path]]:
    """`--storage REGISTRY=DIR`, taken apart.

    Raises:
        InputError: one is not of that form.
    """
    pairs = []
    for value in values:
        name, separator, folder = value.partition("=")
        if not (separator and name and folder):
            raise InputError(f"--storage {value}: write REGISTRY=DIR")
        pairs.append((name, Path(folder)))
    return pairs
