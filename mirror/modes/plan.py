"""Planning a switch between modes: what to reach in which order, what it costs, and why not.

Each step changes a small model of the cluster (`Routing`): the routes on which it reads images, and
what answers at their ends. So the plan can show that nobody ever asks where nothing answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import or_
from typing import Any

from mirror.documents import document
from mirror.modes import (
    LOGICAL_BASE,
    ROLE_HOSTS,
    ClusterBackend,
    ConditionType,
    ModeKind,
    Plane,
    Role,
    Verdict,
    allowed,
    conditions_of,
    legal_path,
    not_supported,
)
from mirror.modes.outcomes import (
    Cause,
    Doubt,
    PlanWarning,
    Refusal,
    check_preconditions,
    warnings_of,
)
from mirror.modes.settings import ClusterFacts, RegistrySettings, Upstream

# -- routes and what answers -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class PlannedRoute:
    """A route that a plane has at some moment of a switch.

    `names` is the beginning of the image references that take it; `host` is where it leads, and
    `backend` what must run there for it to serve.
    """

    plane: Plane
    names: str
    role: Role
    host: str
    backend: str


@dataclass(frozen=True, slots=True)
class Routing:
    """The routes of a moment, what answers at their ends, and the names that images go by."""

    routes: frozenset[PlannedRoute]
    serving: frozenset[str]
    names: frozenset[str]

    def of(self, plane: Plane) -> frozenset[PlannedRoute]:
        """The routes of one plane."""
        return frozenset(route for route in self.routes if route.plane is plane)

    def serves(self, plane: Plane) -> bool:
        """Whether every name in use has a route on this plane at whose end something answers."""
        return self.names <= {
            route.names for route in self.of(plane) if route.backend in self.serving
        }

    def __or__(self, other: Routing) -> Routing:
        return Routing(
            self.routes | other.routes, self.serving | other.serving, self.names | other.names
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """What a kind of mode looks like when a switch to it is complete."""

    kind: ModeKind
    upstream: Upstream | None

    @property
    def address(self) -> str:
        """The registry outside, as people write it."""
        return "the registry of the installation" if self.upstream is None else self.upstream.base

    @property
    def registry(self) -> str:
        """The backend that the registry outside is."""
        return f"registry {self.address}"

    @property
    def backend(self) -> str:
        """What the cluster itself runs; the upstream's name where it runs nothing."""
        row = self.kind.row
        if row.backend is None:
            return self.registry
        return row.backend if row.holds_own_images else f"{row.backend}: {self.address}"

    @property
    def names(self) -> str:
        """What image references begin with."""
        return LOGICAL_BASE if self.kind.row.managed else self.address

    def route(self, plane: Plane) -> PlannedRoute:
        """The first route of a plane."""
        role = self.kind.row.planes[plane].roles[0]
        if role is Role.UPSTREAM:
            return PlannedRoute(plane, self.names, role, self.address, self.registry)
        return PlannedRoute(plane, self.names, role, ROLE_HOSTS[role], self.backend)

    def routing(self) -> Routing:
        """Its routes; all of them serve."""
        routes = frozenset(map(self.route, (Plane.CRI, Plane.API)))
        serving = {route.backend for route in routes}
        if not self.kind.row.holds_own_images:
            serving.add(self.registry)
        return Routing(routes, frozenset(serving), frozenset({self.names}))


def _towards(current: RegistrySettings, target: RegistrySettings) -> Layout:
    """What `target` looks like for a cluster that comes from `current`."""
    kept = current if not target.configurable else target  # the deprecated kind has no settings
    return Layout(target.kind, kept.upstream)


_C = ConditionType
_REPLICAS = (ClusterBackend.STORE, ClusterBackend.CACHE)
_PROXY = (ClusterBackend.PROXY,)


def apply(step: ConditionType, now: Routing, target: Layout) -> Routing:
    """The routing once `step` of a switch to `target` is reached."""
    match step:
        case _C.IMAGES if not target.kind.row.holds_own_images:
            # The check has spoken with the upstream.
            return replace(now, serving=now.serving | {target.registry})
        case _C.NODE_SERVICES | _C.IN_CLUSTER_PROXY:
            # One of its sort that runs already becomes it, behind the same address.
            old = _of(now, _REPLICAS if step is _C.NODE_SERVICES else _PROXY)
            routes = frozenset(
                replace(route, backend=target.backend) if route.backend in old else route
                for route in now.routes
            )
            return replace(now, routes=routes, serving=(now.serving - old) | {target.backend})
        case _C.TRANSITION:
            return replace(now, routes=now.routes | {target.route(Plane.CRI)})
        case _C.REGISTRY_SWITCH:
            routes = now.of(Plane.CRI) | {target.route(Plane.API)}
            return replace(now, routes=routes, names=frozenset({target.names}))
        case _C.FINAL:
            return replace(now, routes=now.of(Plane.API) | {target.route(Plane.CRI)})
        case _C.CLEANUP_NODE_SERVICES | _C.CLEANUP_IN_CLUSTER_PROXY:
            old = _of(now, _REPLICAS if step is _C.CLEANUP_NODE_SERVICES else _PROXY)
            return replace(now, serving=now.serving - old)
        case _:
            return now


def _of(now: Routing, backends: tuple[ClusterBackend, ...]) -> frozenset[str]:
    """What serves and is of these sorts."""
    return frozenset(one for one in now.serving if one.startswith(backends))


# -- the plan --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SwitchStep:
    """One condition to reach: the action for it, and how it changes the routes."""

    condition: ConditionType
    action: str
    before: Routing
    after: Routing

    @property
    def in_place(self) -> bool:
        """Whether instances are replaced one after the other, behind the same address."""
        gone = self.before.serving - self.after.serving
        return bool(gone) and self.condition in (
            ConditionType.NODE_SERVICES,
            ConditionType.IN_CLUSTER_PROXY,
        )

    @property
    def added(self) -> frozenset[PlannedRoute]:
        """Routes that the step adds."""
        return self.after.routes - self.before.routes

    @property
    def removed(self) -> frozenset[PlannedRoute]:
        """Routes that the step removes."""
        return self.before.routes - self.after.routes


@dataclass(frozen=True, slots=True)
class SwitchPlan:
    """How to come from one mode to another. With refusals there are no steps.

    `path` has the kinds to switch to one after the other: the target alone, or more where the
    direct switch is closed. `doubts` are preconditions that nobody has checked.
    """

    current: ModeKind | None
    target: ModeKind
    verdict: Verdict
    path: tuple[ModeKind, ...]
    steps: tuple[SwitchStep, ...] = ()
    warnings: tuple[PlanWarning, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    doubts: tuple[Doubt, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether no known fact stands against it."""
        return not self.refusals

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            **document(self, "current", "target", "verdict", "allowed", "path"),
            "steps": [
                {
                    **document(step, "condition", "action"),
                    "routesAdded": [asdict(route) for route in sorted(step.added)],
                    "routesRemoved": [asdict(route) for route in sorted(step.removed)],
                }
                for step in self.steps
            ],
            "warnings": [asdict(one) for one in self.warnings],
            "refusals": [{**asdict(one), "path": list(one.path)} for one in self.refusals],
            "doubts": [asdict(one) for one in self.doubts],
        }


def plan_switch(
    current: RegistrySettings | None,
    target: RegistrySettings,
    facts: ClusterFacts,
    *,
    strict: bool = True,
) -> SwitchPlan:
    """How a cluster comes from `current` to `target`.

    `current` is the mode that was completed last, None while a cluster is being installed;
    `facts.aborted` is a switch that was begun since. Without `strict`, switches are allowed that
    the cluster would make although its documents advise against them.
    """
    after = target.kind
    first = current is None or not (facts.node_config_managed or current.managed)
    found = check_preconditions(current, target, facts, first=first)
    if current is None:
        path = next((one.path for one in found.refusals if one.path), (after,))
        refusals, doubts = tuple(found.refusals), tuple(found.doubts)
        return SwitchPlan(None, after, Verdict.SWITCH, path, refusals=refusals, doubts=doubts)
    before = current.kind
    verdict = _verdict(current, target, facts)
    if verdict is Verdict.NOTHING:
        return SwitchPlan(before, after, verdict, (after,))
    aborted = None if facts.aborted is None else facts.aborted.kind
    if closed := transition_refusal(before, after, aborted, strict=strict):
        found.refusals.insert(0, closed)
    there, wanted = [Layout(before, current.upstream)], _towards(current, target)
    if facts.aborted is not None:
        there.append(_towards(current, facts.aborted))
    if not after.row.configurable:
        found.refusals += _legacy_conflicts(current, target, facts, there)
    path = legal_path(before, after, aborted, strict=strict)
    renames = {layout.names for layout in there} != {wanted.names}
    return SwitchPlan(
        before,
        after,
        verdict,
        path,
        () if found.refusals else _steps(there, wanted, target, facts),
        tuple(warnings_of(before, path, facts, renames=renames)),
        tuple(found.refusals),
        tuple(found.doubts),
    )


def _verdict(current: RegistrySettings, target: RegistrySettings, facts: ClusterFacts) -> Verdict:
    verdict = current.kind.row.switches[target.kind]
    if facts.aborted is not None:  # a switch back to where it came from is one
        return Verdict.SWITCH if verdict is Verdict.NOTHING else verdict
    same = current.upstream == target.upstream and (
        (current.proxy and current.proxy.ttl_s) == (target.proxy and target.proxy.ttl_s)
    )  # the check mode does not count
    return Verdict.NOTHING if verdict is Verdict.PARAMETERS and same else verdict


def _legacy_conflicts(
    current: RegistrySettings, target: RegistrySettings, facts: ClusterFacts, there: list[Layout]
) -> Iterator[Refusal]:
    """Refuse a deprecated Unmanaged whose nodes would have nothing to continue with."""
    wanted = target.upstream
    if wanted is not None and wanted != current.upstream:
        yield Refusal(
            Cause.SETTINGS,
            "the deprecated kind of Unmanaged keeps the cluster's present registry and cannot move "
            f"it to {wanted.base}; use the section unmanaged instead",
            (ModeKind.UNMANAGED,),
        )
    if facts.saved_parameters is False and any(
        layout.kind.row.managed or layout.upstream != current.upstream for layout in there
    ):
        yield Refusal(
            Cause.SETTINGS,
            "no parameters of an earlier mode are saved, so the nodes would lose their route to "
            "the images; complete a switch to configurable Unmanaged first",
            (ModeKind.UNMANAGED, ModeKind.LEGACY),
        )


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


# -- steps -----------------------------------------------------------------------------------------


def _steps(
    there: list[Layout], wanted: Layout, target: RegistrySettings, facts: ClusterFacts
) -> tuple[SwitchStep, ...]:
    routing = reduce(or_, (layout.routing() for layout in there))
    # Each mode but Local saves its parameters; without an earlier mode there are none.
    saved = facts.saved_parameters is not False
    steps = []
    for condition in conditions_of(wanted.kind, saved_parameters=saved):
        after = apply(condition, routing, wanted)
        steps.append(SwitchStep(condition, _action(condition, wanted, target), routing, after))
        routing = after
    return tuple(steps)


def _action(condition: ConditionType, wanted: Layout, target: RegistrySettings) -> str:
    """The action that reaches a condition."""
    row, registry = wanted.kind.row, wanted.address
    local, replicas = row.holds_own_images, row.runs_replicas
    images = "the required images" if target.check_mode == "Default" else "the platform's own image"
    check = f"check that {registry} holds {images}"
    if local:
        check = (
            "push the bundle, let the replicas exchange it, and check that every master holds "
            f"{images}"
        )
    transition = f"give every node the route to {registry}, beside the one it has"
    switch = f"give the platform's components the address {registry}"
    if replicas:
        transition = (
            "give every node the route to the replicas, beside the one it has, and start the "
            "balancer on every node"
        )
    if row.managed:
        behind = "replicas" if replicas else "proxy"
        switch = f"point the Service at the {behind} and give the platform's components the address"
    return {
        _C.IMAGES: check,
        _C.PREFLIGHT: "check that no node's containerd has registry settings of its own",
        _C.NODE_SERVICES: f"start the {wanted.kind} replicas on the masters"
        + (" and open the address for pushing" if local else ""),
        _C.TRANSITION: transition,
        _C.IN_CLUSTER_PROXY: f"roll out the in-cluster proxy to {registry}",
        _C.REGISTRY_SWITCH: switch,
        _C.FINAL: "remove the old route from every node",
        _C.CLEANUP_NODE_SERVICES: "stop the replicas on the masters; their data stays on the disks",
        _C.CLEANUP_IN_CLUSTER_PROXY: "remove the in-cluster proxy",
        _C.READY: f"the cluster is in mode {wanted.kind.mode}",
    }[condition]
