"""What a plan must know of a cluster beside the settings, as plain values that somebody observed.

None means that nobody looked: nothing is refused for it, and the plan says what is to be looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mirror.modes.constants import UNKNOWN_VERSION
from mirror.modes.settings import RegistrySettings


class StoreContent(StrEnum):
    """What lies in a master's data folder, whatever runs there now."""

    EMPTY = "empty"
    PLAIN = "plain"
    """A registry's own images: what Local mode keeps, the pushed bundle above all."""
    CACHE = "cache"
    """Copies of an upstream's images: what Proxy mode keeps."""


class ContainerdConfig(StrEnum):
    """The label by which a node says whether its containerd has registry settings of its own."""

    DEFAULT = "default"
    CUSTOM = "custom"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node. `version` is that of the registry configuration which it has applied."""

    name: str
    master: bool = False
    ready: bool | None = None
    schedulable: bool | None = None
    cri: str | None = None
    containerd_config: ContainerdConfig | None = None
    version: str = UNKNOWN_VERSION


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """A cluster as it is before a switch.

    `bootstrapped`: bootstrap is completely finished. `managed_by_dkp`: no Managed Kubernetes.
    `static`: no machines from a cloud provider. `queue_empty`: Deckhouse's queue of tasks.
    `node_config_managed`: the Secret `registry-bashible-config` exists, so that an earlier switch
    has brought the nodes' configuration into order. `saved_parameters`: an earlier mode left its
    parameters for the deprecated kind of Unmanaged. `images_present`: the target's registry holds
    the required images. `stores`: what lies on the masters' disks, left by whatever mode.
    `aborted`: the settings to which a switch was under way that was not completed.
    """

    bootstrapped: bool | None = None
    managed_by_dkp: bool | None = None
    static: bool | None = None
    queue_empty: bool | None = None
    node_config_managed: bool | None = None
    saved_parameters: bool | None = None
    images_present: bool | None = None
    nodes: tuple[NodeFacts, ...] | None = None
    stores: frozenset[StoreContent] | None = None
    aborted: RegistrySettings | None = None

    @property
    def masters(self) -> tuple[NodeFacts, ...] | None:
        """The masters among the nodes."""
        return None if self.nodes is None else tuple(node for node in self.nodes if node.master)
