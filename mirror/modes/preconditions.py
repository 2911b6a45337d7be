"""Why a cluster cannot be switched as it is: what is known to be wrong, and what is not known."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from mirror.errors import RouteError
from mirror.modes import constants
from mirror.modes.addressing import upstream_repository
from mirror.modes.conditions import not_supported
from mirror.modes.facts import ClusterFacts, ContainerdConfig
from mirror.modes.matrix import MATRIX, Kind, Verdict, allowed, legal_path
from mirror.modes.outcomes import MOST_NODES
from mirror.modes.settings import RegistrySettings


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
    """Why not. `path` has the switches by which the target is reached all the same, if any."""

    cause: Cause
    message: str
    path: tuple[Kind, ...] = ()


@dataclass(frozen=True, slots=True)
class Doubt:
    """A precondition that nobody has looked at."""

    cause: Cause
    message: str


@dataclass(slots=True)
class Findings:
    """What came of looking at all preconditions."""

    refusals: list[Refusal] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)

    def demand(self, holds: bool | None, cause: Cause, message: str) -> None:
        """One that must hold; None if it is not known whether it does."""
        if holds is None:
            self.doubts.append(Doubt(cause, message))
        elif not holds:
            self.refusals.append(Refusal(cause, message))


def transition_refusal(
    current: Kind, target: Kind, aborted: Kind | None, *, strict: bool
) -> Refusal | None:
    """Whether the pair itself is closed.

    An aborted switch counts like a completed one: its replicas have run and its routes may be in
    use, though the cluster's own guard looks at the last completed mode alone.
    """
    for origin in (current, aborted):
        if origin is None or allowed(origin, target, strict=strict):
            continue
        path = legal_path(current, target, aborted, strict=strict)
        message = not_supported(origin, target)
        if MATRIX[origin][target] is Verdict.UNDOCUMENTED:
            message += " (the cluster's documents advise against it)"
        if origin is aborted:
            message += f"; the switch to {aborted} was begun and not completed"
        if path[0] is current:  # nothing but a return opens the way on
            message += f"; go back to {path[0]} first, then to {' → '.join(path[1:])}"
        else:
            message += f"; go {' → '.join((current, *path))}"
        return Refusal(Cause.NOT_SUPPORTED, message, path)
    return None


def check_preconditions(
    current: RegistrySettings | None,
    target: RegistrySettings,
    kind: Kind,
    facts: ClusterFacts,
    *,
    first: bool,
) -> Findings:
    """All preconditions of a switch to `target`, whose kind is `kind`.

    `current` is None in a cluster that is being installed. `first` says that the nodes'
    configuration has not been managed before.
    """
    found = Findings()
    if current is None:
        if kind.node_services:
            found.refusals.append(
                Refusal(
                    Cause.BOOTSTRAP,
                    f"a cluster cannot be installed in mode {kind}; install it in mode Direct or "
                    "Unmanaged and switch when bootstrap is finished",
                    (Kind.DIRECT, kind),
                )
            )
    else:
        found.demand(
            facts.bootstrapped,
            Cause.BOOTSTRAP,
            "mode and parameters change only when bootstrap is completely finished; wait for it",
        )
    if kind is not Kind.LEGACY:
        _check_platform(kind, facts, found)
    if first and kind is not Kind.LEGACY and current is not None:
        _check_first_switch(facts, found)
    _check_registry(target, kind, facts, found)
    return found


def _check_platform(kind: Kind, facts: ClusterFacts, found: Findings) -> None:
    found.demand(
        facts.managed_by_dkp,
        Cause.MANAGED_KUBERNETES,
        f"mode {kind} configures the nodes, so the cluster must be managed by the platform and "
        "not be a Managed Kubernetes",
    )
    supported = " or ".join(constants.SUPPORTED_CRI)
    wrong = [
        f"{node.name} ({node.cri})"
        for node in facts.nodes or ()
        if node.cri is not None and node.cri not in constants.SUPPORTED_CRI
    ]
    unknown = facts.nodes is None or any(node.cri is None for node in facts.nodes)
    found.demand(
        False if wrong else None if unknown else True,
        Cause.CRI,
        f"every node's container runtime must be {supported}{_names(wrong)}",
    )
    if kind.node_services:
        found.demand(
            facts.static,
            Cause.NOT_STATIC,
            f"mode {kind} works in static clusters only, and not with machines of a cloud provider",
        )


def _check_first_switch(facts: ClusterFacts, found: Findings) -> None:
    nodes = None if facts.nodes is None else facts.nodes
    custom = [
        node.name for node in nodes or () if node.containerd_config is ContainerdConfig.CUSTOM
    ]
    unlabelled = nodes is None or any(node.containerd_config is None for node in nodes)
    found.demand(
        False if custom else None if unlabelled else True,
        Cause.CONTAINERD_CONFIG,
        "before the first switch, registry settings of one's own in containerd's configuration "
        f"must be moved to {constants.CONTAINERD_HOSTS}{_names(custom)}",
    )
    masters = facts.masters
    idle = [node.name for node in masters or () if node.ready is False or node.schedulable is False]
    unseen = not masters or any(None in (node.ready, node.schedulable) for node in masters)
    found.demand(
        False if idle else None if unseen else True,
        Cause.MASTERS,
        f"before the first switch all masters must be Ready and schedulable{_names(idle)}",
    )
    found.demand(
        facts.queue_empty,
        Cause.QUEUE,
        "before the first switch Deckhouse's queue must be empty; wait until it has done its tasks",
    )


def _check_registry(
    target: RegistrySettings, kind: Kind, facts: ClusterFacts, found: Findings
) -> None:
    upstream = target.upstream
    if upstream is not None:
        try:
            upstream_repository("", upstream)
        except RouteError as err:
            found.refusals.append(Refusal(Cause.SETTINGS, str(err)))
    if kind is Kind.LOCAL:
        return  # its replicas are filled while the switch is under way, which waits for that
    if kind is Kind.LEGACY and facts.saved_parameters is False:
        return
    if facts.images_present is False:
        where = "the registry" if upstream is None else upstream.base
        found.refusals.append(
            Refusal(
                Cause.IMAGES,
                f"{where} lacks images that the cluster needs; push them there, or correct "
                "imagesRepo, and check again",
            )
        )


def _names(names: list[str]) -> str:
    """`: a, b` for a message; nothing for no names."""
    if not names:
        return ""
    names = sorted(names)
    more = f" and {len(names) - MOST_NODES} more" if len(names) > MOST_NODES else ""
    return f": {', '.join(names[:MOST_NODES])}{more}"
