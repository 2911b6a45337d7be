"""Settings and facts that tests about the registry module share."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from mirror.modes import ModeKind, RegistryUser, StoreContent
from mirror.modes.settings import (
    Account,
    ClusterAccess,
    ClusterFacts,
    ContainerdConfig,
    NodeFacts,
    RegistrySettings,
)

UPSTREAM = {"imagesRepo": "nexus.corp.example:8443/dkp/ee", "username": "u", "password": "p"}

SETTINGS = {
    ModeKind.DIRECT: RegistrySettings.load({"mode": "Direct", "direct": UPSTREAM}),
    ModeKind.PROXY: RegistrySettings.load({"mode": "Proxy", "proxy": UPSTREAM}),
    ModeKind.LOCAL: RegistrySettings.load({"mode": "Local"}),
    ModeKind.UNMANAGED: RegistrySettings.load({"mode": "Unmanaged", "unmanaged": UPSTREAM}),
    ModeKind.LEGACY: RegistrySettings.load({"mode": "Unmanaged"}),
}
"""One of each kind, with one and the same upstream."""

ACCOUNTS = {user: Account(user.value, SecretStr(f"{user}-password")) for user in RegistryUser}

SITES = ClusterAccess(
    masters=("10.0.0.1", "10.0.0.2", "10.0.0.3"),
    ca="MODULE CA",
    public_host="registry.corp.example",
    public_ca="PUBLIC CA",
    accounts=ACCOUNTS,
)


def node(name: str, *, master: bool = False, **changes: Any) -> NodeFacts:
    """A node that is as it should be before a first switch."""
    good: dict[str, Any] = {
        "ready": True,
        "schedulable": True,
        "cri": "ContainerdV2",
        "containerd_config": ContainerdConfig.DEFAULT,
        "version": "unknown",
    }
    return NodeFacts(name, master, **{**good, **changes})


GOOD = ClusterFacts(
    bootstrapped=True,
    managed_by_dkp=True,
    static=True,
    queue_empty=True,
    node_config_managed=False,
    saved_parameters=True,
    images_present=True,
    nodes=(*(node(f"master-{n}", master=True) for n in range(3)), node("worker-0")),
    stores=frozenset({StoreContent.EMPTY}),
)
"""A cluster in which nothing stands against any switch."""
