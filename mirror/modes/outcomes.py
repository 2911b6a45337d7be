"""What somebody observed of a cluster: facts before a switch, and the outcome of each of its steps.

A fact that nobody looked at is None. Outcomes have the cluster's own messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import ClassVar

from pydantic import ConfigDict
from pydantic.alias_generators import to_camel

from mirror.modes.routes import UNKNOWN_VERSION, StoreContent
from mirror.modes.settings import RegistrySettings


class ContainerdConfig(StrEnum):
    """A node's label that tells whether its containerd has registry settings of its own."""

    DEFAULT = "default"
    CUSTOM = "custom"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node. `version` is that of the registry configuration which it has applied.

    `services` is that of the configuration with which a master's own registry runs: its pod says it
    (`registry.deckhouse.io/config-version`).
    """

    name: str
    master: bool = False
    ready: bool | None = None
    schedulable: bool | None = None
    cri: str | None = None
    containerd_config: ContainerdConfig | None = None
    version: str = UNKNOWN_VERSION
    services: str = UNKNOWN_VERSION


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """A cluster as it is before a switch.

    `bootstrapped`: bootstrap is completely finished. `managed_by_dkp`: not a Managed Kubernetes.
    `static`: without a cloud provider's machines. `queue_empty`: Deckhouse's queue of tasks.
    `node_config_managed`: the Secret `registry-bashible-config` exists. `saved_parameters`: an
    earlier mode left its parameters for the deprecated kind of Unmanaged. `images_present`: the
    target's registry holds the required images. `stores`: what lies on the masters' disks.
    `aborted`: the settings of a switch that was begun and not completed.
    """

    # As documents have it, with the nodes in it.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", alias_generator=to_camel, hide_input_in_errors=True
    )

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


# -- outcomes --------------------------------------------------------------------------------------

MOST_NODES = 10
"""A message names this many nodes and gives the number of the others."""

_SHOWN = 8
_name = attrgetter("name")


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """Whether one step is reached, and what a person should know about it."""

    ready: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaPod:
    """A master's replica: the node's readiness, the pod's, and its configuration's version.

    The version is what the pod says of itself, and never what it should be.
    """

    node: str
    node_ready: bool
    pod_ready: bool
    version: str = UNKNOWN_VERSION


def preflight(nodes: Sequence[NodeFacts], *, node_config_managed: bool) -> StepOutcome:
    """Whether no node's containerd has registry settings of its own."""
    if node_config_managed:
        return StepOutcome(True)
    said = {
        ContainerdConfig.CUSTOM: "has custom toml merge containerd configuration",
        None: "unknown containerd configuration, waiting...",
    }
    unready = [
        f"{node.name}: {said[node.containerd_config]}"
        for node in sorted(nodes, key=_name)
        if node.containerd_config in said
    ]
    if nodes and not unready:
        return StepOutcome(True)
    count = [f"{len(unready)}/{len(nodes)} node(s) Unready:"] if unready else []
    return _waiting("\n".join(["Check current nodes configuration", *count]), unready)


def node_services(pods: Sequence[ReplicaPod], wanted: str | Mapping[str, str]) -> StepOutcome:
    """Each master runs its replica with the configuration of version `wanted`.

    That is one version for all, or each node's own (`Rendered.masters`).
    """
    waiting = []
    for pod in sorted(pods, key=lambda pod: pod.node):
        own = wanted if isinstance(wanted, str) else wanted.get(pod.node, UNKNOWN_VERSION)
        if not pod.node_ready:
            waiting.append(f"{pod.node}: node is not Ready")
        elif not pod.pod_ready or pod.version != own or own == UNKNOWN_VERSION:
            waiting.append(
                f"{pod.node}: services pod(s) is not Ready or config version mismatch "
                f'(!= "{_short(own)}")'
            )
    return _nodes(len(pods), waiting)


def containerd_config(
    nodes: Sequence[NodeFacts], wanted: str | None, *, managed: bool = True, written: bool = True
) -> StepOutcome:
    """Every node has applied version `wanted` (None: it is being made); `written`: nodes see it."""
    if wanted is None:
        kind = "Managed" if managed else "Unmanaged"
        return StepOutcome(False, f"Creating {kind} configuration...")
    if not written:
        return StepOutcome(False, "Applying configuration to nodes")
    waiting = [
        f'{node.name}: "{_short(node.version)}" → "{_short(wanted)}"'
        for node in sorted(nodes, key=_name)
        if node.version != wanted
    ]
    done = f"All {len(nodes)} node(s) updated to version {_short(wanted)}"
    return _nodes(len(nodes), waiting, done)


def in_cluster_proxy(wanted: int, ready: int, updated: int | None = None) -> StepOutcome:
    """The in-cluster proxy runs `wanted` times, all with the newest configuration."""
    updated = ready if updated is None else updated
    if wanted and min(ready, updated) >= wanted:
        return StepOutcome(True)
    return StepOutcome(
        False, f"Waiting for rollout: {updated}/{wanted} updated, {ready}/{wanted} ready"
    )


def registry_switch(
    *, secret_current: bool, annotated: bool, pod_exists: bool, pod_ready: bool
) -> StepOutcome:
    """The controller works with the new registry."""
    for done, message in (
        (secret_current, "Updating registry for deckhouse components"),
        (annotated, "Applying new registry to deckhouse-controller"),
        (pod_exists, "Waiting for deckhouse-controller pod"),
        (pod_ready, "Waiting for deckhouse-controller to become ready"),
    ):
        if not done:
            return StepOutcome(False, message)
    return StepOutcome(True)


def cleanup_node_services(left: Iterable[str]) -> StepOutcome:
    """No node runs a replica any more; `left` are those that do."""
    names = sorted(left)
    return _waiting("Waiting for nodes cleanup:", names) if names else StepOutcome(True)


def cleanup_in_cluster_proxy(*, exists: bool) -> StepOutcome:
    """The in-cluster proxy is gone."""
    return StepOutcome(not exists)


def _nodes(total: int, waiting: Sequence[str], done: str = "") -> StepOutcome:
    """Whether all of `total` nodes are ready; a cluster without nodes is not."""
    if total and not waiting:
        return StepOutcome(True, done)
    return _waiting(f"{total - len(waiting)}/{total} node(s) ready. Waiting:", waiting)


def _waiting(head: str, lines: Sequence[str]) -> StepOutcome:
    """Not ready: a message with a list of at most `MOST_NODES` entries."""
    shown = [f"- {line}" for line in lines[:MOST_NODES]]
    if (more := len(lines) - MOST_NODES) > 0:
        shown.append(f"...and {more} more")
    return StepOutcome(False, "\n".join([head, *shown]))


def _short(version: str) -> str:
    return version if len(version) <= _SHOWN else f"{version[:_SHOWN]}…"
