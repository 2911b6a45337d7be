"""The registries that a command line names, and how to reach them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mirror.commands.login import STANDARD_INPUT, AccessOptions, Reached
from mirror.errors import FileSystemError, InputError
from mirror.events import OnEvent, Warned
from mirror.layout import normalised_suffix
from mirror.oci import Repository
from mirror.registry import (
    ConnectionOptions,
    Credentials,
    RegistryClient,
    UploadJournal,
)
from mirror.registry.options import BRIEF
from mirror.sync.tree import RegistryTree

if TYPE_CHECKING:
    from mirror.commands.cluster import Cluster


def cluster_of(module_config: Path | None, sites_file: Path | None) -> Cluster | None:
    """The cluster that a command line describes; None if it does not.

    Raises:
        InputError: as `Cluster.load`, or `--sites` came alone.
    """
    if module_config is not None:
        from mirror.commands.cluster import Cluster

        return Cluster.load(module_config, sites_file)
    if sites_file is not None:
        raise InputError("--sites goes with --module-config FILE, which says what mode it is")
    return None


@dataclass(frozen=True, slots=True)
class TreeAccess:
    """A registry's tree that a command is about, and how to reach it."""

    root: Repository
    modules_suffix: str
    options: ConnectionOptions
    credentials: Credentials | None

    @classmethod
    def of(cls, root: Repository, access: AccessOptions) -> Self:
        """`root`, reached as `access` says."""
        suffix = normalised_suffix(access.modules_path_suffix)
        return cls(root, suffix, access.connection(), access.credentials(str(root)))

    @classmethod
    def named(
        cls,
        registry: str | None,
        access: AccessOptions,
        *,
        module_config: Path | None,
        sites_file: Path | None,
        writes: bool,
    ) -> Self:
        """The registry that a command line names, reached as `access` and `options.cluster` say.

        With `--module-config` that may be a logical address, or None for the cluster's own root;
        `writes` says that the registry will be changed.

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
            return cls.of(Repository.parse(registry), access)
        return cls._reached(cluster.reach(registry, access, writes=writes), access)

    @classmethod
    def replicas(
        cls, access: AccessOptions, *, module_config: Path, sites_file: Path | None
    ) -> list[Self]:
        """The replicas of the cluster in Local mode that the options describe.

        Raises:
            ForbiddenByModeError: the cluster is in another mode, which has no replicas.
            RouteError: the files do not say where they are, or who may write there.
        """
        from mirror.commands.cluster import Cluster

        cluster = Cluster.load(module_config, sites_file)
        return [cls._reached(one, access) for one in cluster.replicas(access)]

    @classmethod
    def _reached(cls, reached: Reached, access: AccessOptions) -> Self:
        suffix = normalised_suffix(access.modules_path_suffix)
        return cls(reached.root, suffix, reached.options, reached.credentials)

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
    storage: Sequence[tuple[str, Path]] = (),
    connections: int = 100,
    masters: Mapping[str, TreeAccess] | None = None,
) -> Iterator[list[RegistryTree]]:
    """Clients for all `registries`, closed at the end; `access` is what `options.registry` says.

    A registry among a cluster's `masters` is reached as the cluster's settings say. Its login is
    the cluster's, which goes to no other registry.

    Raises:
        InputError: `storage` names a registry that is not among `registries`.
    """
    folders = dict(storage)
    if unknown := sorted(folders.keys() - set(registries)):
        raise InputError(f"--storage {unknown[0]}=…: that registry is none of those to work on")
    if masters:
        access = replace(access, login=None, password=None)
    with ExitStack() as opened:
        made = []
        for name in registries:
            target = (masters or {}).get(name) or TreeAccess.of(Repository.parse(name), access)
            if target.credentials is not None and access.password == STANDARD_INPUT:
                # Asked for once, and meant for all.
                access = replace(access, password=target.credentials.password)
            options = replace(target.options, retries=BRIEF, max_connections=connections)
            access_to = replace(target, options=options)
            made.append(opened.enter_context(access_to.open(on_event, storage=folders.get(name))))
        yield made


def masters_of(
    access: AccessOptions, *, module_config: Path | None, sites_file: Path | None
) -> dict[str, TreeAccess]:
    """The replicas of the cluster that `options.cluster` describes, by name; empty without it.

    Raises:
        InputError: `--sites` came alone.
        ForbiddenByModeError: the cluster is in another mode, which has no replicas.
        RouteError: the files do not say where they are, or who may write there.
    """
    if module_config is None:
        cluster_of(module_config, sites_file)  # which refuses --sites alone
        return {}
    targets = TreeAccess.replicas(access, module_config=module_config, sites_file=sites_file)
    return {str(target.root): target for target in targets}


def full_name(name: str, masters: Mapping[str, TreeAccess]) -> str:
    """`name`, or the name of the master that it is a shorter form of: an address, `host:port`."""
    from mirror.modes.constants import REGISTRY_PORT

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
