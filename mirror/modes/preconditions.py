"""Why a cluster cannot be switched now, by which path it could, and what a switch costs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter

from mirror.errors import RouteError
from mirror.modes.addressing import upstream_repository
from mirror.modes.outcomes import MOST_NODES, ClusterFacts, ContainerdConfig, NodeFacts
from mirror.modes.routes import (
    CONTAINERD_HOSTS,
    DATA_ROOT,
    VIA_KINDS,
    ModeKind,
    StoreContent,
    Verdict,
)
from mirror.modes.settings import RegistrySettings
from mirror.modes.state import not_supported

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


# -- which path ------------------------------------------------------------------------------------


def allowed(before: ModeKind, after: ModeKind, *, strict: bool = True) -> bool:
    """Whether `after` can follow `before` directly; `strict`: documented switches alone."""
    verdict = before.row.switches[after]
    if verdict is Verdict.UNDOCUMENTED:
        return not strict
    return verdict is not Verdict.FORBIDDEN


def legal_path(
    current: ModeKind, target: ModeKind, aborted: ModeKind | None = None, *, strict: bool = True
) -> tuple[ModeKind, ...]:
    """The fewest allowed switches that lead from `current` to `target`.

    The first must also be allowed from `aborted`, whose replicas and routes may be in place.
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
    raise AssertionError("Unmanaged can be reached from every mode and leads to every mode")


def _candidates(target: ModeKind, back: ModeKind | None) -> Iterator[ModeKind]:
    """Where to go next, best first: the target; where one came from; the usual stopovers."""
    yield from dict.fromkeys(kind for kind in (target, back, *VIA_KINDS) if kind is not None)


# -- preconditions ---------------------------------------------------------------------------------


def transition_refusal(
    current: ModeKind, target: ModeKind, aborted: ModeKind | None, *, strict: bool
) -> Refusal | None:
    """Why the switch itself is closed; None if it is open. `aborted` counts like `current`."""
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
    current: RegistrySettings | None, target: RegistrySettings, facts: ClusterFacts, *, first: bool
) -> Findings:
    """All preconditions of a switch; `first`: nobody has managed the nodes' configuration yet.

    `current` is None while a cluster is being installed.
    """
    found, kind = Findings(), target.kind
    row = kind.row
    if current is not None:
        found.demand(
            facts.bootstrapped,
            Cause.BOOTSTRAP,
            "mode and parameters can change only after bootstrap has completely finished; wait "
            "until it has",
        )
    elif row.runs_replicas:
        message = (
            f"a cluster cannot be installed in mode {kind}; install it in mode Direct or Unmanaged "
            "and switch after bootstrap has finished"
        )
        found.refusals.append(Refusal(Cause.BOOTSTRAP, message, (VIA_KINDS[0], kind)))
    if row.configurable:
        found.demand(
            facts.managed_by_dkp,
            Cause.MANAGED_KUBERNETES,
            f"mode {kind} configures the nodes, so the cluster must be managed by the platform and "
            "not be a Managed Kubernetes",
        )
        found.demand_of(
            facts.nodes,
            lambda node: None if node.cri is None else node.cri in _SUPPORTED_CRI,
            Cause.CRI,
            f"every node's container runtime must be {' or '.join(_SUPPORTED_CRI)}",
            lambda node: f"{node.name} ({node.cri})",
        )
        if row.runs_replicas:
            found.demand(
                facts.static,
                Cause.NOT_STATIC,
                f"mode {kind} works only in static clusters, without a cloud provider's machines",
            )
        if first and current is not None:
            _check_first_switch(facts, found)
    _check_registry(target, facts, found)
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
    found.demand(
        facts.queue_empty,
        Cause.QUEUE,
        "before the first switch, Deckhouse's queue must be empty; wait until its tasks are done",
    )


def _check_registry(target: RegistrySettings, facts: ClusterFacts, found: Findings) -> None:
    upstream, row = target.upstream, target.kind.row
    if upstream is not None:
        try:
            upstream_repository("", upstream)
        except RouteError as err:
            found.refusals.append(Refusal(Cause.SETTINGS, str(err)))
    # The switch to Local itself fills the replicas, and waits for that.
    asked = not row.holds_own_images and (row.configurable or facts.saved_parameters is not False)
    if asked:
        where = "the registry" if upstream is None else upstream.base
        message = (
            f"{where} must hold all images that the cluster needs; push the absent ones there or "
            "correct imagesRepo, then check again"
        )
        found.demand(facts.images_present, Cause.IMAGES, message)


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
