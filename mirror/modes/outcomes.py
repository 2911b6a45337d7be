"""From what was seen of nodes, pods and Secrets to the outcome of a step, with its message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mirror.modes.conditions import Outcome
from mirror.modes.constants import UNKNOWN_VERSION
from mirror.modes.facts import ContainerdConfig, NodeFacts

MOST_NODES = 10
"""As many nodes a message names; of the others it gives the number."""

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class ReplicaPod:
    """A master's replica: the node's readiness, the pod's, and its configuration's version."""

    node: str
    node_ready: bool
    pod_ready: bool
    version: str = UNKNOWN_VERSION


def preflight(nodes: Sequence[NodeFacts], *, node_config_managed: bool) -> Outcome:
    """Every node's containerd is without registry settings of its own."""
    if node_config_managed:
        return Outcome(True)
    said = {
        ContainerdConfig.CUSTOM: "has custom toml merge containerd configuration",
        None: "unknown containerd configuration, waiting...",
    }
    unready = [
        f"{node.name}: {said[node.containerd_config]}"
        for node in _sorted(nodes)
        if node.containerd_config is not ContainerdConfig.DEFAULT
    ]
    if nodes and not unready:
        return Outcome(True)
    lines = ["Check current nodes configuration"]
    if unready:
        lines.append(f"{len(unready)}/{len(nodes)} node(s) Unready:")
    return Outcome(False, "\n".join([*lines, *_listed(unready)]))


def node_services(pods: Sequence[ReplicaPod], wanted: str) -> Outcome:
    """Each master runs its replica with the configuration of version `wanted`."""
    waiting = []
    for pod in sorted(pods, key=lambda pod: pod.node):
        if not pod.node_ready:
            waiting.append(f"{pod.node}: node is not Ready")
        elif not pod.pod_ready or pod.version != wanted:
            waiting.append(
                f"{pod.node}: services pod(s) is not Ready or config version mismatch "
                f'(!= "{_short(wanted)}")'
            )
    return _nodes(len(pods), waiting)


def containerd_config(
    nodes: Sequence[NodeFacts], wanted: str | None, *, managed: bool = True, written: bool = True
) -> Outcome:
    """Every node has applied the configuration of version `wanted`, None while it is being made.

    Not `written` means that the nodes have not been told of it yet.
    """
    if wanted is None:
        return Outcome(False, f"Creating {'Managed' if managed else 'Unmanaged'} configuration...")
    if not written:
        return Outcome(False, "Applying configuration to nodes")
    waiting = [
        f'{node.name}: "{_short(node.version)}" → "{_short(wanted)}"'
        for node in _sorted(nodes)
        if node.version != wanted
    ]
    outcome = _nodes(len(nodes), waiting)
    if outcome.ready:
        return Outcome(True, f"All {len(nodes)} node(s) updated to version {_short(wanted)}")
    return outcome


def in_cluster_proxy(wanted: int, ready: int, updated: int | None = None) -> Outcome:
    """The in-cluster proxy runs `wanted` times, all with the newest configuration."""
    updated = ready if updated is None else updated
    if wanted and min(ready, updated) >= wanted:
        return Outcome(True)
    return Outcome(
        False, f"Waiting for rollout: {updated}/{wanted} updated, {ready}/{wanted} ready"
    )


def registry_switch(
    *, secret_current: bool, annotated: bool, pod_exists: bool, pod_ready: bool
) -> Outcome:
    """The controller works with the new registry."""
    for done, message in (
        (secret_current, "Updating registry for deckhouse components"),
        (annotated, "Applying new registry to deckhouse-controller"),
        (pod_exists, "Waiting for deckhouse-controller pod"),
        (pod_ready, "Waiting for deckhouse-controller to become ready"),
    ):
        if not done:
            return Outcome(False, message)
    return Outcome(True)


def cleanup_node_services(left: Iterable[str]) -> Outcome:
    """No node runs a replica any more; `left` are those that do."""
    names = sorted(left)
    if not names:
        return Outcome(True)
    return Outcome(False, "\n".join(["Waiting for nodes cleanup:", *_listed(names)]))


def cleanup_in_cluster_proxy(*, exists: bool) -> Outcome:
    """The in-cluster proxy is gone."""
    return Outcome(not exists)


def _nodes(total: int, waiting: Sequence[str]) -> Outcome:
    """All of `total` nodes are ready. None at all is not: something must be there to be ready."""
    if total and not waiting:
        return Outcome(True)
    head = f"{total - len(waiting)}/{total} node(s) ready. Waiting:"
    return Outcome(False, "\n".join([head, *_listed(waiting)]))


def _listed(lines: Sequence[str]) -> list[str]:
    """A list of at most `MOST_NODES` entries."""
    shown = [f"- {line}" for line in lines[:MOST_NODES]]
    if (more := len(lines) - MOST_NODES) > 0:
        shown.append(f"...and {more} more")
    return shown


def _sorted(nodes: Iterable[NodeFacts]) -> list[NodeFacts]:
    return sorted(nodes, key=lambda node: node.name)


def _short(version: str) -> str:
    return version if len(version) <= _SHOWN else f"{version[:_SHOWN]}…"
