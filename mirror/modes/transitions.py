"""Planning a switch between modes: what to reach in which order, what it costs, and why not.

Pure: the same settings and facts give the same plan, and nothing is carried out here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mirror.modes.conditions import ConditionType, ordered
from mirror.modes.facts import ClusterFacts
from mirror.modes.matrix import MATRIX, Kind, Verdict, kind_of, legal_path
from mirror.modes.preconditions import (
    Cause,
    Doubt,
    Refusal,
    check_preconditions,
    transition_refusal,
)
from mirror.modes.risks import PlanWarning, warnings_of
from mirror.modes.routing import (
    INSTALLED_WITH,
    Layout,
    PlannedRoute,
    Routing,
    apply,
    layouts,
)
from mirror.modes.settings import RegistrySettings


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
    warnings = warnings_of(current, target, path, facts)
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
    there, _ = layouts(current, target, facts)
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


def _steps(
    current: RegistrySettings, target: RegistrySettings, facts: ClusterFacts
) -> tuple[Step, ...]:
    there, wanted = layouts(current, target, facts)
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
