"""Registries as arguments: what `sync`, `diff`, `status` and `prune` do alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mirror.commands.cluster import cluster_of
from mirror.commands.shared import TreeAccess
from mirror.errors import InputError
from mirror.events import OnEvent
from mirror.modes.constants import REGISTRY_PORT
from mirror.oci import Repository
from mirror.registry import RetryPolicy
from mirror.sync.tree import RegistryTree

# A registry answers 500 for a manifest that is damaged. There may be many, and whoever looks at a
# replica looks again soon, so patience is shorter than in a push.
_RETRIES = RetryPolicy(attempts=4, base_delay_s=0.5, max_delay_s=5.0)


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
            options = replace(target.options, retries=_RETRIES, max_connections=connections)
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
