"""Why a cluster cannot be switched now, by which path it could, and what a switch costs.

Refusals are known to be wrong; nobody has checked doubts; warnings tell a person before the switch
begins what it loses, restarts or renews.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from mirror.errors import RouteError
from mirror.modes import constants
from mirror.modes.addressing import upstream_repository
from mirror.modes.constants import DATA_ROOT
from mirror.modes.outcomes import MOST_NODES, ClusterFacts, ContainerdConfig
from mirror.modes.routes import STOPOVERS, ModeKind, StoreContent, Verdict
from mirror.modes.settings import RegistrySettings
from mirror.modes.state import not_supported


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


# -- which path ------------------------------------------------------------------------------------


def allowed(before: ModeKind, after: ModeKind, *, strict: bool = True) -> bool:
    """Whether `after` can follow `before` directly; staying is allowed.

    Without `strict`, switches that documents advise against are allowed.
    """
    verdict = before.row.switches[after]
    if verdict is Verdict.UNDOCUMENTED:
        return not strict
    return verdict is not Verdict.FORBIDDEN


def legal_path(
    current: ModeKind, target: ModeKind, aborted: ModeKind | None = None, *, strict: bool = True
) -> tuple[ModeKind, ...]:
    """The fewest switches that lead from `current` to `target`, each of them allowed.

    `aborted` is the target of a switch that was begun and not completed: its replicas and routes
    may be in place, so the first step must be allowed from there too.
    """
    origins = (current,) if aborted is None else (current, aborted)
    paths: deque[tuple[ModeKind, ...]] = deque()
    for kind in _candidates(target, current if aborted else None):
        if all(allowed(origin, kind, strict=strict) for origin in origins):
            paths.append((kind,))
    while paths:
        path = paths.popleft()
        if path[-1] is target:
            return path
        paths += (
            (*path, kind)
            for kind in _candidates(target, None)
            if kind not in path and allowed(path[-1], kind, strict=strict)
        )
    raise AssertionError("Unmanaged is reached from everywhere and leads everywhere")


def _candidates(target: ModeKind, back: ModeKind | None) -> Iterator[ModeKind]:
    """Where to go next, best first: the target; where one came from; the usual stopovers."""
    yield from dict.fromkeys(kind for kind in (target, back, *STOPOVERS) if kind is not None)


# -- preconditions ---------------------------------------------------------------------------------


def transition_refusal(
    current: ModeKind, target: ModeKind, aborted: ModeKind | None, *, strict: bool
) -> Refusal | None:
    """Why the switch from `current` to `target` itself is closed; None if it is open.

    An aborted switch counts like a completed one: its replicas have run and its routes may be in
    use, although the cluster's own guard looks only at the last completed mode.
    """
    for origin in (current, aborted):
        if origin is None or allowed(origin, target, strict=strict):
            continue
        path = legal_path(current, target, aborted, strict=strict)
        message = not_supported(origin, target)
        if origin.row.switches[target] is Verdict.UNDOCUMENTED:
            message += " (the cluster's documents advise against it)"
        if origin is aborted:
            message += f"; the switch to {aborted} was begun and not completed"
        if path[0] is current:  # only a return opens the path
            message += f"; go back to {path[0]} first, then to {' → '.join(path[1:])}"
        else:
            message += f"; go {' → '.join((current, *path))}"
        return Refusal(Cause.NOT_SUPPORTED, message, path)
    return None


def check_preconditions(
    current: RegistrySettings | None,
    target: RegistrySettings,
    kind: ModeKind,
    facts: ClusterFacts,
    *,
    first: bool,
) -> Findings:
    """All preconditions of a switch to `target`, whose kind is `kind`.

    `current` is None while a cluster is being installed. `first`: nobody has managed the nodes'
    configuration before.
    """
    found = Findings()
    if current is None:
        if kind.row.runs_replicas:
            found.refusals.append(
                Refusal(
                    Cause.BOOTSTRAP,
                    f"a cluster cannot be installed in mode {kind}; install it in mode Direct or "
                    "Unmanaged and switch when bootstrap is finished",
                    (STOPOVERS[0], kind),
                )
            )
    else:
        found.demand(
            facts.bootstrapped,
            Cause.BOOTSTRAP,
            "mode and parameters change only when bootstrap is completely finished; wait for it",
        )
    if kind.row.configurable:
        _check_platform(kind, facts, found)
    if first and kind.row.configurable and current is not None:
        _check_first_switch(facts, found)
    _check_registry(target, kind, facts, found)
    return found


def _check_platform(kind: ModeKind, facts: ClusterFacts, found: Findings) -> None:
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
    if kind.row.runs_replicas:
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
    target: RegistrySettings, kind: ModeKind, facts: ClusterFacts, found: Findings
) -> None:
    upstream = target.upstream
    if upstream is not None:
        try:
            upstream_repository("", upstream)
        except RouteError as err:
            found.refusals.append(Refusal(Cause.SETTINGS, str(err)))
    if kind.row.holds_own_images:
        return  # the switch itself fills the replicas, and waits for that
    if not kind.row.configurable and facts.saved_parameters is False:
        return
    if facts.images_present is False:
        where = "the registry" if upstream is None else upstream.base
        found.refusals.append(
            Refusal(
                Cause.IMAGES,
                f"{where} does not hold all images that the cluster needs; push them there, or "
                "correct imagesRepo, and check again",
            )
        )


def _names(names: list[str]) -> str:
    """`: a, b` for a message; nothing for no names."""
    if not names:
        return ""
    names = sorted(names)
    more = f" and {len(names) - MOST_NODES} more" if len(names) > MOST_NODES else ""
    return f": {', '.join(names[:MOST_NODES])}{more}"


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
) -> tuple[PlanWarning, ...]:
    """What to know before a switch from `before` by the kinds of `path`, the last its target.

    `renames`: image references change.
    """
    warnings = _store_warnings(before, path, facts)
    after = path[-1]
    unmanaged_between = any(not kind.row.managed for kind in path)
    drops_users = next((kind for kind in path if kind.row.runs_in_cluster_proxy), None)
    if renames or (len(path) > 1 and unmanaged_between):
        warnings.append(
            PlanWarning(
                Risk.RESTART,
                "image references change, so all components of the platform restart and are "
                "pulled anew",
            )
        )
    if before.row.managed and unmanaged_between:
        warnings.append(
            PlanWarning(
                Risk.CREDENTIALS,
                "leaving the managed modes drops the registry's certificates and the passwords of "
                "its users; a return makes new ones",
            )
        )
    elif before.row.runs_replicas and drops_users is not None:
        warnings.append(
            PlanWarning(
                Risk.CREDENTIALS,
                f"mode {drops_users} drops the passwords of the registry's users; a return to "
                "Proxy or Local makes new ones",
            )
        )
    masters = facts.masters
    in_place = before is after and after.row.managed and len(path) == 1
    if in_place and masters is not None and len(masters) == 1:
        warnings.append(
            PlanWarning(
                Risk.GAP,
                "with one master the registry's service is restarted with its new parameters "
                "while nothing stands in for it; pulls in that moment are tried again",
            )
        )
    if not before.row.configurable and after.row.managed:
        warnings.append(
            PlanWarning(
                Risk.ADVICE,
                "the cluster's documents advise to switch to configurable Unmanaged first; the "
                "nodes' old parameters are recovered from the Secret deckhouse-registry",
            )
        )
    return tuple(warnings)


def _store_warnings(
    before: ModeKind, path: tuple[ModeKind, ...], facts: ClusterFacts
) -> list[PlanWarning]:
    """What the replicas of each step do to the store that they find."""
    stores, certain = _stores(before, facts)
    warnings = []
    for kind in path:
        keeps = kind.row.store
        if keeps is None:
            continue
        if stores - {keeps, StoreContent.EMPTY}:
            warnings.append(PlanWarning(Risk.DATA_LOSS, _loss(keeps, certain)))
        elif StoreContent.PLAIN in stores and not before.row.holds_own_images:
            message = (
                f"mode {kind} goes on with the images that an earlier one left in {DATA_ROOT}; "
                "what was pushed since is not among them, so push the bundle again"
            )
            warnings.append(PlanWarning(Risk.ADVICE, message))
        stores, certain = frozenset({keeps}), True
    if before.row.holds_own_images and not any(kind.row.runs_replicas for kind in path):
        message = (
            f"the pushed images stay in {DATA_ROOT} of the masters; a later switch to mode Proxy "
            "deletes them"
        )
        warnings.append(PlanWarning(Risk.ADVICE, message))
    return warnings


def _stores(before: ModeKind, facts: ClusterFacts) -> tuple[frozenset[StoreContent], bool]:
    """What can lie on the masters' disks, and whether that is known.

    Replicas leave their store behind when they stop. So if none runs, an earlier mode or an aborted
    switch may have left anything there.
    """
    if facts.stores is not None:
        return facts.stores, True
    store = before.row.store
    return (frozenset(StoreContent), False) if store is None else (frozenset({store}), True)


def _loss(keeps: StoreContent, certain: bool) -> str:
    """The warning that replicas which keep `keeps` delete a store of the other sort."""
    if keeps is StoreContent.PLAIN:
        found = "what a Proxy cache left" if certain else "what a Proxy cache may have left"
        return (
            f"starting the Local replicas deletes {found} in {DATA_ROOT} of the masters, and they "
            "start empty: push the bundle only after NodeServicesReady"
        )
    found = "all images" if certain else "all images, if any,"
    return (
        f"starting the Proxy replicas deletes {found} that mode Local keeps in {DATA_ROOT} of the "
        "masters, the pushed bundle included; keep the bundle, for a return to Local starts empty"
    )
