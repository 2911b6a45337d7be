"""How a command line names a cluster; what reads its files is imported when there are some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror.commands.access import AccessOptions, TreeAccess
from mirror.commands.options import FILE, grouped, option
from mirror.errors import InputError

if TYPE_CHECKING:
    from mirror.commands.cluster import Cluster


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
            return _load(self.module_config, self.sites_file)
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


def full_name(name: str, masters: Mapping[str, TreeAccess]) -> str:
    """`name`, or the name of the master that it is a shorter form of: an address, `host:port`."""
    from mirror.modes.routes import REGISTRY_PORT

    for known, target in masters.items():
        host = target.root.host
        if name in (host, host.removesuffix(f":{REGISTRY_PORT}").strip("[]")):
            return known
    return name


def _options(make: Callable[..., object], *, required: bool) -> Any:
    """The options that name a cluster's files; a command gets what `make` makes of them."""
    return grouped(
        make,
        module_config=option(
            "YAML file with ModuleConfig deckhouse, which configures the cluster's registry.",
            type=FILE,
            required=required,
        ),
        sites_file=option(
            "With --module-config: YAML file with the cluster's masters, users, CA and public "
            "domain.",
            "--sites",
            type=FILE,
        ),
    )


cluster_files = _options(ClusterFiles, required=False)
"""How to find the registry of a cluster by its own settings."""


def _load(module_config: Path, sites_file: Path | None) -> Cluster:
    from mirror.commands.cluster import Cluster

    return Cluster.load(module_config, sites_file)


required_cluster = _options(_load, required=True)
