"""A switch as its routes see it: which there are, and whether something answers at their end.

A small model of a cluster, good for one question: does anybody ever ask where nothing answers? It
has the two planes on which a running cluster reads images. Each step changes it in a known way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mirror.modes.addressing import Plane, Role
from mirror.modes.conditions import ConditionType
from mirror.modes.constants import BALANCER, LOGICAL_BASE, LOGICAL_HOST
from mirror.modes.facts import ClusterFacts
from mirror.modes.matrix import Kind, kind_of
from mirror.modes.settings import RegistrySettings, Upstream

INSTALLED_WITH = "the registry of the installation"
"""Stands for the address of an upstream that nobody told us."""


@dataclass(frozen=True, slots=True, order=True)
class PlannedRoute:
    """A way that askers of a plane are told of.

    `names` is what image references begin with that go this way; `host` is where it leads, and
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
        """Whether every name in use has a way on this plane at whose end something answers."""
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

    kind: Kind
    upstream: Upstream | None

    @property
    def _address(self) -> str:
        return INSTALLED_WITH if self.upstream is None else self.upstream.base

    @property
    def _registry(self) -> str:
        return f"registry {self._address}"

    @property
    def replicas(self) -> str:
        """The backend that masters run."""
        return "Local replicas" if self.kind is Kind.LOCAL else f"Proxy replicas: {self._address}"

    @property
    def proxy(self) -> str:
        """The backend that the in-cluster proxy is."""
        return f"in-cluster proxy: {self._address}"

    @property
    def names(self) -> str:
        """What image references begin with."""
        return LOGICAL_BASE if self.kind.managed else self._address

    def cri(self) -> PlannedRoute:
        """The way of the nodes' containerd."""
        if self.kind.node_services:
            return PlannedRoute(Plane.CRI, self.names, Role.BALANCER, BALANCER, self.replicas)
        return PlannedRoute(Plane.CRI, self.names, Role.UPSTREAM, self._address, self._registry)

    def api(self) -> PlannedRoute:
        """The way of the platform's components."""
        if not self.kind.managed:
            return PlannedRoute(Plane.API, self.names, Role.UPSTREAM, self._address, self._registry)
        backend = self.replicas if self.kind.node_services else self.proxy
        return PlannedRoute(Plane.API, self.names, Role.SERVICE, LOGICAL_HOST, backend)

    def routing(self) -> Routing:
        """Its routes, all of which serve."""
        routes = frozenset({self.cri(), self.api()})
        serving = {route.backend for route in routes}
        if self.kind is not Kind.LOCAL:
            serving.add(self._registry)
        return Routing(routes, frozenset(serving), frozenset({self.names}))


def layouts(
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


_REPLICAS = ("Local replicas", "Proxy replicas: ")
_PROXY = ("in-cluster proxy: ",)


def apply(step: ConditionType, now: Routing, target: Layout) -> Routing:
    """The routing once `step` of a switch to `target` is reached."""
    final = target.routing()
    match step:
        case ConditionType.IMAGES if target.kind is not Kind.LOCAL:
            # The check has spoken with it.
            return replace(
                now, serving=now.serving | (final.serving - {target.proxy, target.replicas})
            )
        case ConditionType.NODE_SERVICES:
            return _start(now, target.replicas, _REPLICAS)
        case ConditionType.IN_CLUSTER_PROXY:
            return _start(now, target.proxy, _PROXY)
        case ConditionType.TRANSITION:
            return replace(now, routes=now.routes | {target.cri()})
        case ConditionType.REGISTRY_SWITCH:
            routes = now.of(Plane.CRI) | {target.api()}
            return replace(now, routes=routes, names=final.names)
        case ConditionType.FINAL:
            return replace(now, routes=now.of(Plane.API) | {target.cri()})
        case ConditionType.CLEANUP_NODE_SERVICES:
            return _stop(now, _REPLICAS)
        case ConditionType.CLEANUP_IN_CLUSTER_PROXY:
            return _stop(now, _PROXY)
        case _:
            return now


def _start(now: Routing, backend: str, kinds: tuple[str, ...]) -> Routing:
    """A backend comes up; one of its sort that runs already becomes it, behind the same address."""
    old = frozenset(one for one in now.serving if one.startswith(kinds))
    routes = frozenset(
        replace(route, backend=backend) if route.backend in old else route for route in now.routes
    )
    return replace(now, routes=routes, serving=(now.serving - old) | {backend})


def _stop(now: Routing, kinds: tuple[str, ...]) -> Routing:
    left = frozenset(one for one in now.serving if not one.startswith(kinds))
    return replace(now, serving=left)
