"""What somebody observed of a cluster: facts before a switch, and the outcome of each of its steps.

A fact that nobody looked at is None. From facts follow why a cluster cannot be switched now and
what a switch costs. Outcomes have the cluster's own messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter

from mirror.errors import RouteError
from mirror.modes import (
    CONTAINERD_HOSTS,
    DATA_ROOT,
    UNKNOWN_VERSION,
    VIA_KINDS,
    ModeKind,
    StoreContent,
)
from mirror.modes.addressing import upstream_repository
from mirror.modes.settings import ClusterFacts, ContainerdConfig, NodeFacts, RegistrySettings

MOST_NODES = 10
"""A message names this many nodes and gives the number of the others."""


_SUPPORTED_CRI = ("Containerd", "ContainerdV2")


class Cause(StrEnum):
    """The kinds of refusal."""

    NOT_SUPPORTED = "ErrTransitionNotSupported"
    BOOTSTRAP = "Bootstrap"
    CRI = "ContainerRuntime"
    MANAGED_KUBERNETES = "ManagedKubernetes"
    NOT_STATIC = "NotStatic"
    CONTAINERD_CONFIG = "ContainerdConfig"
    MASTERS = "Masters"
    QUEUE = "Queue"
    IMAGES = "RequiredImages"
    SETTINGS = "Settings"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not. `path` has the switches that reach the target all the same, if any."""

    cause: Cause
    message: str
    path: tuple[ModeKind, ...] = ()


@dataclass(frozen=True, slots=True)
class Doubt:
    """A precondition that nobody has checked."""

    cause: Cause
    message: str


@dataclass(slots=True)
class Findings:
    """What checking all preconditions gave."""

    refusals: list[Refusal] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)

    def demand(self, holds: bool | None, cause: Cause, message: str) -> None:
        """Note a precondition; `holds` is None where nobody knows."""
        if holds is None:
            self.doubts.append(Doubt(cause, message))
        elif not holds:
            self.refusals.append(Refusal(cause, message))

    def demand_of(
        self,
        nodes: Sequence[NodeFacts] | None,
        holds: Callable[[NodeFacts], bool | None],
        cause: Cause,
        message: str,
        label: Callable[[NodeFacts], str] = attrgetter("name"),
    ) -> None:
        """Note a precondition of every node; the message ends with those that do not meet it."""
        answers = [(node, holds(node)) for node in nodes or ()]
        wrong = sorted(label(node) for node, answer in answers if answer is False)
        unknown = nodes is None or any(answer is None for _, answer in answers)
        if wrong:
            more = f" and {len(wrong) - MOST_NODES} more" if len(wrong) > MOST_NODES else ""
            message += f": {', '.join(wrong[:MOST_NODES])}{more}"
        self.demand(False if wrong else None if unknown else True, cause, message)


# -- preconditions ---------------------------------------------------------------------------------


def check_preconditions(
    current: RegistrySettings | None, target: RegistrySettings, facts: ClusterFacts, *, first: bool
) -> Findings:
    """All preconditions of a switch; `first`: nobody has managed the nodes' configuration yet.

    `current` is None while a cluster is being installed.
    """
    found, kind, row = Findings(), target.kind, target.kind.row
    if current is not None:
        message = (
            "mode and parameters can change only after bootstrap has completely finished; wait "
            "until it has"
        )
        found.demand(facts.bootstrapped, Cause.BOOTSTRAP, message)
    elif row.runs_replicas:
        message = (
            f"a cluster cannot be installed in mode {kind}; install it in mode Direct or Unmanaged "
            "and switch after bootstrap has finished"
        )
        found.refusals.append(Refusal(Cause.BOOTSTRAP, message, (VIA_KINDS[0], kind)))
    if row.configurable:
        message = (
            f"mode {kind} configures the nodes, so the cluster must be managed by the platform and "
            "not be a Managed Kubernetes"
        )
        found.demand(facts.managed_by_dkp, Cause.MANAGED_KUBERNETES, message)
        found.demand_of(
            facts.nodes,
            lambda node: None if node.cri is None else node.cri in _SUPPORTED_CRI,
            Cause.CRI,
            f"every node's container runtime must be {' or '.join(_SUPPORTED_CRI)}",
            lambda node: f"{node.name} ({node.cri})",
        )
        if row.runs_replicas:
            message = (
                f"mode {kind} works only in static clusters, without a cloud provider's machines"
            )
            found.demand(facts.static, Cause.NOT_STATIC, message)
        if first and current is not None:
            _check_first_switch(facts, found)
    upstream = target.upstream
    if upstream is not None:
        try:
            upstream_repository("", upstream)
        except RouteError as err:
            found.refusals.append(Refusal(Cause.SETTINGS, str(err)))
    # The switch to Local itself fills the replicas, and waits for that.
    if not row.holds_own_images and (row.configurable or facts.saved_parameters is not False):
        message = (
            f"{'the registry' if upstream is None else upstream.base} must hold all images that "
            "the cluster needs; push the absent ones there or correct imagesRepo, then check again"
        )
        found.demand(facts.images_present, Cause.IMAGES, message)
    return found


def _check_first_switch(facts: ClusterFacts, found: Findings) -> None:
    default = ContainerdConfig.DEFAULT
    found.demand_of(
        facts.nodes,
        lambda node: None if node.containerd_config is None else node.containerd_config is default,
        Cause.CONTAINERD_CONFIG,
        "before the first switch, move custom registry settings from containerd's configuration to "
        f"{CONTAINERD_HOSTS}",
    )
    found.demand_of(
        facts.masters or None,
        # False if either is, else None if nobody looked at one of them.
        lambda node: min((node.ready, node.schedulable), key=(False, None, True).index),
        Cause.MASTERS,
        "before the first switch, all masters must be Ready and schedulable",
    )
    message = (
        "before the first switch, Deckhouse's queue must be empty; wait until its tasks are done"
    )
    found.demand(facts.queue_empty, Cause.QUEUE, message)


# -- warnings --------------------------------------------------------------------------------------


class Risk(StrEnum):
    """The kinds of warning."""

    DATA_LOSS = "DataLoss"
    RESTART = "Restart"
    CREDENTIALS = "Credentials"
    GAP = "Gap"
    ADVICE = "Advice"


@dataclass(frozen=True, slots=True)
class PlanWarning:
    """What a person should know before the switch begins."""

    risk: Risk
    message: str


def warnings_of(
    before: ModeKind, path: tuple[ModeKind, ...], facts: ClusterFacts, *, renames: bool
) -> Iterator[PlanWarning]:
    """What to know before a switch by the kinds of `path`; `renames`: image references change."""
    after, masters = path[-1], facts.masters
    unmanaged_between = any(not kind.row.managed for kind in path)
    proxy = next((kind for kind in path if kind.row.runs_in_cluster_proxy), None)
    in_place = before is after and after.row.managed and len(path) == 1
    yield from _store_warnings(before, path, facts)
    if renames or (len(path) > 1 and unmanaged_between):
        yield PlanWarning(
            Risk.RESTART,
            "image references change, so all components of the platform restart and pull again",
        )
    if before.row.managed and unmanaged_between:
        yield PlanWarning(
            Risk.CREDENTIALS,
            "leaving the managed modes drops the registry's certificates and the passwords of its "
            "users; a return makes new ones",
        )
    elif before.row.runs_replicas and proxy is not None:
        yield PlanWarning(
            Risk.CREDENTIALS,
            f"mode {proxy} drops the passwords of the registry's users; a return to Proxy or Local "
            "makes new ones",
        )
    if in_place and masters is not None and len(masters) == 1:
        yield PlanWarning(
            Risk.GAP,
            "the only master restarts the registry's service with its new parameters, and nothing "
            "stands in for it; pulls fail at that moment and are retried",
        )
    if not before.row.configurable and after.row.managed:
        yield PlanWarning(
            Risk.ADVICE,
            "the cluster's documents advise to switch to configurable Unmanaged first; the nodes' "
            "old parameters are recovered from the Secret deckhouse-registry",
        )


def _store_warnings(
    before: ModeKind, path: tuple[ModeKind, ...], facts: ClusterFacts
) -> Iterator[PlanWarning]:
    """What the replicas of each step do to the store that earlier ones left on the masters."""
    kept = before.row.store
    stores, certain = frozenset(StoreContent), False
    if facts.stores is not None or kept is not None:
        stores, certain = facts.stores or frozenset({kept or StoreContent.EMPTY}), True
    for kind in path:
        keeps = kind.row.store
        if keeps is None:
            continue
        if stores - {keeps, StoreContent.EMPTY}:
            yield PlanWarning(Risk.DATA_LOSS, _loss(keeps, certain))
        elif StoreContent.PLAIN in stores and not before.row.holds_own_images:
            yield PlanWarning(
                Risk.ADVICE,
                f"mode {kind} keeps the images that an earlier mode left in {DATA_ROOT}; what was "
                "pushed since is not among them, so push the bundle again",
            )
        stores, certain = frozenset({keeps}), True
    if before.row.holds_own_images and not any(kind.row.runs_replicas for kind in path):
        yield PlanWarning(
            Risk.ADVICE,
            f"the pushed images stay in {DATA_ROOT} of the masters; a later switch to mode Proxy "
            "deletes them",
        )


def _loss(keeps: StoreContent, certain: bool) -> str:
    """The warning that replicas which keep `keeps` delete a store of the other sort."""
    if keeps is StoreContent.PLAIN:
        found = "what a Proxy cache left" if certain else "what a Proxy cache may have left"
        return (
            f"the Local replicas start empty and delete {found} in {DATA_ROOT} of the masters; "
            "push the bundle only after NodeServicesReady"
        )
    found = "all images" if certain else "all images, if any,"
    return (
        f"when the Proxy replicas start, they delete {found} that mode Local keeps in {DATA_ROOT} "
        "of the masters, the pushed bundle included; keep the bundle, since a return to Local "
        "starts empty"
    )


# -- outcomes --------------------------------------------------------------------------------------

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
