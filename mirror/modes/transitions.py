"""Planning a switch between modes: what to reach in which order, what it costs, and why not.

Pure: the same settings and facts give the same plan, and nothing is carried out here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mirror.modes.conditions import ConditionType, ordered
from mirror.modes.constants import DATA_ROOT
from mirror.modes.facts import ClusterFacts, Store
from mirror.modes.matrix import MATRIX, Kind, Verdict, kind_of, legal_path
from mirror.modes.preconditions import (
    Cause,
    Doubt,
    Refusal,
    check_preconditions,
    transition_refusal,
)
from mirror.modes.routing import INSTALLED_WITH, Layout, PlannedRoute, Routing, apply
from mirror.modes.settings import RegistrySettings


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


@dataclass(frozen=True, slots=True)
class Step:
    """One condition to reach: what is done for it, and what it changes for who reads images."""

    condition: ConditionType
    action: str
    before: Routing
    after: Routing

    @property
    def in_place(self) -> bool:
        """Whether what serves is replaced behind its address, one instance after the other."""
        gone = self.before.serving - self.after.serving
        return bool(gone) and self.condition in (
            ConditionType.NODE_SERVICES,
            ConditionType.IN_CLUSTER_PROXY,
        )

    @property
    def added(self) -> frozenset[PlannedRoute]:
        """Routes that are there only afterwards."""
        return self.after.routes - self.before.routes

    @property
    def removed(self) -> frozenset[PlannedRoute]:
        """Routes that are there only before."""
        return self.before.routes - self.after.routes


@dataclass(frozen=True, slots=True)
class SwitchPlan:
    """How to come from one mode to another. With refusals there are no steps.

    `path` has the kinds to switch to one after the other: the target alone, or more where the
    straight way is closed. `doubts` are preconditions that nobody has looked at.
    """

    current: Kind | None
    target: Kind
    verdict: Verdict
    path: tuple[Kind, ...]
    steps: tuple[Step, ...] = ()
    warnings: tuple[PlanWarning, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    doubts: tuple[Doubt, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether nothing that is known stands against it."""
        return not self.refusals

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "current": None if self.current is None else self.current.value,
            "target": self.target.value,
            "verdict": self.verdict.value,
            "allowed": self.allowed,
            "path": [kind.value for kind in self.path],
            "steps": [
                {
                    "condition": step.condition.value,
                    "action": step.action,
                    "routesAdded": [_route_document(route) for route in sorted(step.added)],
                    "routesRemoved": [_route_document(route) for route in sorted(step.removed)],
                }
                for step in self.steps
            ],
            "warnings": [{"risk": one.risk.value, "message": one.message} for one in self.warnings],
            "refusals": [
                {
                    "cause": one.cause.value,
                    "message": one.message,
                    "path": [kind.value for kind in one.path],
                }
                for one in self.refusals
            ],
            "doubts": [{"cause": one.cause.value, "message": one.message} for one in self.doubts],
        }


def _route_document(route: PlannedRoute) -> dict[str, str]:
    return {
        "plane": route.plane.value,
        "names": route.names,
        "role": route.role.value,
        "host": route.host,
        "backend": route.backend,
    }


def plan_switch(
    current: RegistrySettings | None,
    target: RegistrySettings,
    facts: ClusterFacts,
    *,
    strict: bool = True,
) -> SwitchPlan:
    """How a cluster comes from `current` to `target`.

    `current` is what was last completed, None in a cluster that is being installed;
    `facts.aborted` is what was begun since. Not `strict` allows what the cluster would do though
    its documents advise against it.
    """
    after = kind_of(target)
    if current is None:
        found = check_preconditions(None, target, after, facts, first=True)
        path = next((one.path for one in found.refusals if one.path), (after,))
        refusals, doubts = tuple(found.refusals), tuple(found.doubts)
        return SwitchPlan(None, after, Verdict.SWITCH, path, refusals=refusals, doubts=doubts)
    before = kind_of(current)
    aborted = None if facts.aborted is None else kind_of(facts.aborted)
    verdict = _verdict(current, target, before, after, facts)
    if verdict is Verdict.NOTHING:
        return SwitchPlan(before, after, verdict, (after,))
    path = legal_path(before, after, aborted, strict=strict)
    first = not facts.node_config_managed and not before.managed
    found = check_preconditions(current, target, after, facts, first=first)
    if closed := transition_refusal(before, after, aborted, strict=strict):
        found.refusals.insert(0, closed)
    elif path != (after,):
        raise AssertionError("an open way is the shortest")
    if after is Kind.LEGACY:
        found.refusals += _legacy_conflicts(current, target, facts)
    warnings = _warnings(current, target, path, facts)
    steps: tuple[Step, ...] = ()
    if not found.refusals:
        steps = _steps(current, target, facts)
    return SwitchPlan(
        before,
        after,
        verdict,
        path,
        steps,
        warnings,
        tuple(found.refusals),
        tuple(found.doubts),
    )


def _verdict(
    current: RegistrySettings,
    target: RegistrySettings,
    before: Kind,
    after: Kind,
    facts: ClusterFacts,
) -> Verdict:
    verdict = MATRIX[before][after]
    if facts.aborted is not None and verdict is Verdict.NOTHING:
        return Verdict.SWITCH  # back to where it came from
    if verdict is Verdict.PARAMETERS and facts.aborted is None and _same(current, target):
        return Verdict.NOTHING
    return verdict


def _same(one: RegistrySettings, other: RegistrySettings) -> bool:
    """Whether two settings of one kind mean the same. How images are checked is no part of it."""
    if one.upstream != other.upstream:
        return False
    return (one.proxy and one.proxy.ttl_s) == (other.proxy and other.proxy.ttl_s)


def _legacy_conflicts(
    current: RegistrySettings, target: RegistrySettings, facts: ClusterFacts
) -> Iterator[Refusal]:
    """The deprecated kind of Unmanaged goes on with what is there, so there must be something."""
    wanted = target.upstream
    if wanted is not None and wanted != current.upstream:
        yield Refusal(
            Cause.SETTINGS,
            "the deprecated kind of Unmanaged keeps the registry that the cluster has, so it "
            f"cannot be moved to {wanted.base} this way; use the section unmanaged",
            (Kind.UNMANAGED,),
        )
    there, _ = _layouts(current, target, facts)
    if facts.saved_parameters is False and any(
        layout.kind.managed or layout.upstream != current.upstream for layout in there
    ):
        yield Refusal(
            Cause.SETTINGS,
            "no parameters of an earlier mode are saved, so the nodes would lose their way to the "
            "images and get no other; complete a switch to configurable Unmanaged first",
            (Kind.UNMANAGED, Kind.LEGACY),
        )


# -- steps -----------------------------------------------------------------------------------------


def _layouts(
    current: RegistrySettings, target: RegistrySettings, facts: ClusterFacts
) -> tuple[list[Layout], Layout]:
    """What is there, aborted switches included, and what is to be there."""
    there = [Layout(kind_of(current), current.upstream)]
    if facts.aborted is not None:
        there.append(_towards(current, facts.aborted))
    return there, _towards(current, target)


def _towards(current: RegistrySettings, target: RegistrySettings) -> Layout:
    """What `target` looks like when one comes from `current`."""
    kind = kind_of(target)
    return Layout(kind, current.upstream if kind is Kind.LEGACY else target.upstream)


def _steps(
    current: RegistrySettings, target: RegistrySettings, facts: ClusterFacts
) -> tuple[Step, ...]:
    there, wanted = _layouts(current, target, facts)
    routing = there[0].routing()
    for layout in there[1:]:
        routing |= layout.routing()
    # Without any mode before, there is nothing saved; else each mode but Local saves it.
    saved = facts.saved_parameters is not False
    steps = []
    for condition in ordered(wanted.kind, saved_parameters=saved):
        after = apply(condition, routing, wanted)
        steps.append(Step(condition, _action(condition, wanted, target), routing, after))
        routing = after
    return tuple(steps)


def _action(condition: ConditionType, wanted: Layout, target: RegistrySettings) -> str:
    """What is done to reach a condition."""
    local, serviced = wanted.kind is Kind.LOCAL, wanted.kind.node_services
    registry = INSTALLED_WITH if wanted.upstream is None else wanted.upstream.base
    what = "the required images" if target.check_mode == "Default" else "the platform's own image"
    match condition:
        case ConditionType.IMAGES if local:
            return (
                "push the bundle, let the replicas exchange it, and check that every master holds "
                f"{what}"
            )
        case ConditionType.IMAGES:
            return f"check that {registry} holds {what}"
        case ConditionType.PREFLIGHT:
            return "see that no node's containerd has registry settings of its own"
        case ConditionType.NODE_SERVICES:
            push = " and open the address for pushing" if local else ""
            return f"start the {wanted.kind} replicas on the masters{push}"
        case ConditionType.TRANSITION:
            balancer = ", and start the balancer on every node" if serviced else ""
            way = "the replicas" if serviced else registry
            return f"tell every node of the way to {way}, beside the one it has{balancer}"
        case ConditionType.IN_CLUSTER_PROXY:
            return f"roll out the in-cluster proxy to {registry}"
        case ConditionType.REGISTRY_SWITCH if serviced:
            return (
                "point the Service at the replicas and give the platform's components the address"
            )
        case ConditionType.REGISTRY_SWITCH if wanted.kind.managed:
            return "point the Service at the proxy and give the platform's components the address"
        case ConditionType.REGISTRY_SWITCH:
            return f"give the platform's components the address {registry}"
        case ConditionType.FINAL:
            return "take the old way from every node"
        case ConditionType.CLEANUP_NODE_SERVICES:
            return "stop the replicas on the masters; what they stored stays on their disks"
        case ConditionType.CLEANUP_IN_CLUSTER_PROXY:
            return "remove the in-cluster proxy"
        case _:
            return f"the cluster is in mode {wanted.kind.mode}"


# -- warnings --------------------------------------------------------------------------------------


def _warnings(
    current: RegistrySettings,
    target: RegistrySettings,
    path: tuple[Kind, ...],
    facts: ClusterFacts,
) -> tuple[PlanWarning, ...]:
    warnings = _store_warnings(current, path, facts)
    before, after = kind_of(current), path[-1]
    there, wanted = _layouts(current, target, facts)
    names = {layout.names for layout in there}
    if names != {wanted.names} or (len(path) > 1 and any(not kind.managed for kind in path)):
        warnings.append(
            PlanWarning(
                Risk.RESTART,
                "image references change, so all components of the platform restart and are "
                "pulled anew",
            )
        )
    if before.managed and any(not kind.managed for kind in path):
        warnings.append(
            PlanWarning(
                Risk.CREDENTIALS,
                "leaving the managed modes drops the registry's certificates and the passwords of "
                "its users; a return makes new ones",
            )
        )
    elif before.node_services and Kind.DIRECT in path:
        warnings.append(
            PlanWarning(
                Risk.CREDENTIALS,
                "mode Direct drops the passwords of the registry's users; a return to Proxy or "
                "Local makes new ones",
            )
        )
    if _one_instance(before, after, path, facts):
        warnings.append(
            PlanWarning(
                Risk.GAP,
                "with one master the registry's service is restarted with its new parameters "
                "while nothing stands in for it; pulls in that moment are tried again",
            )
        )
    if before is Kind.LEGACY and after.managed:
        warnings.append(
            PlanWarning(
                Risk.ADVICE,
                "the cluster's documents advise to switch to configurable Unmanaged first; the "
                "nodes' old parameters are recovered from the Secret deckhouse-registry",
            )
        )
    return tuple(warnings)


def _one_instance(before: Kind, after: Kind, path: tuple[Kind, ...], facts: ClusterFacts) -> bool:
    masters = facts.masters
    in_place = before is after and after.managed and len(path) == 1
    return in_place and masters is not None and len(masters) == 1


def _store_warnings(
    current: RegistrySettings, path: tuple[Kind, ...], facts: ClusterFacts
) -> list[PlanWarning]:
    """What the replicas of each step of the way do with the store that they find."""
    stores, certain = _stores(current, facts)
    warnings = []
    for kind in path:
        if not kind.node_services:
            continue
        keeps = Store.PLAIN if kind is Kind.LOCAL else Store.CACHE
        if stores - {keeps, Store.EMPTY}:
            warnings.append(PlanWarning(Risk.DATA_LOSS, _loss(kind, certain)))
        elif Store.PLAIN in stores and kind_of(current) is not Kind.LOCAL:
            message = (
                f"mode Local goes on with the images that an earlier one left in {DATA_ROOT}; "
                "what was pushed since is not among them, so push the bundle again"
            )
            warnings.append(PlanWarning(Risk.ADVICE, message))
        stores, certain = frozenset({keeps}), True
    if kind_of(current) is Kind.LOCAL and not any(kind.node_services for kind in path):
        message = (
            f"the pushed images stay in {DATA_ROOT} of the masters; a later switch to mode Proxy "
            "deletes them"
        )
        warnings.append(PlanWarning(Risk.ADVICE, message))
    return warnings


def _stores(current: RegistrySettings, facts: ClusterFacts) -> tuple[frozenset[Store], bool]:
    """What can lie on the masters' disks, and whether that is known.

    Replicas leave their store behind when they stop. So where none runs, anything can be there: by
    a mode before the current one, or by a switch that was begun and not completed.
    """
    if facts.stores is not None:
        return facts.stores, True
    match kind_of(current):
        case Kind.LOCAL:
            return frozenset({Store.PLAIN}), True
        case Kind.PROXY:
            return frozenset({Store.CACHE}), True
        case _:
            return frozenset(Store), False


def _loss(kind: Kind, certain: bool) -> str:
    if kind is Kind.LOCAL:
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
