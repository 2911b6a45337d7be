"""Which endpoints are asked for a repository, and which one takes what is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock

from mirror.errors import MirrorError
from mirror.modes.addressing import Plane, routes_for
from mirror.modes.endpoints import Endpoint
from mirror.modes.failover import Patience, Reading
from mirror.modes.places import Place, Places
from mirror.modes.settings import RegistrySettings
from mirror.modes.sites import Sites
from mirror.registry import Credentials

ANYWHERE = Place("install")
"""Endpoints are the same for every repository; the root is none where the upstream has no path."""


class Ways:
    """The endpoints of one plane under given settings. Thread-safe.

    `credentials` take the place of those of the routes.

    Raises:
        RouteError: the settings and sites do not say where the registry is on that plane.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        sites: Sites,
        plane: Plane,
        credentials: Credentials | None,
    ) -> None:
        self.places = Places(settings, sites)
        self._settings, self._sites, self._plane = settings, sites, plane
        self._credentials = credentials
        self.endpoints = tuple(self.all_to(ANYWHERE))
        self._lock = Lock()  # guards _choice
        self._choice: Endpoint | None = None

    def all_to(self, place: Place) -> dict[Endpoint, str]:
        """Where `place` can be asked for, in order, and as which repository."""
        address = self.places.address(place, self._plane)
        routes = routes_for(address, self._settings, self._plane, self._sites)
        return {Endpoint.of(route, self._credentials): route.repository for route in routes}

    def to(
        self, place: Place, patience: Patience, ping: Callable[[Endpoint], None]
    ) -> dict[Endpoint, str]:
        """The same, but who writes also reads from the one endpoint that is written to.

        Raises:
            UnreachableError: none answers `ping`, so that none can be chosen.
        """
        ways = self.all_to(place)
        if self._plane is not Plane.OPERATOR or len(ways) == 1:
            return ways
        chosen = self._chosen(patience, ping)
        return {chosen: ways[chosen]}

    def _chosen(self, patience: Patience, ping: Callable[[Endpoint], None]) -> Endpoint:
        """The replica that takes what is pushed: the first that answers, and then always it.

        What a push found or left at one replica need not be at another.
        """
        with self._lock:
            if self._choice is None:
                self._choice = _first_that_answers(self.endpoints, patience, ping)
            return self._choice


def _first_that_answers(
    endpoints: Sequence[Endpoint], patience: Patience, ping: Callable[[Endpoint], None]
) -> Endpoint:
    reading = Reading("a replica to push to", endpoints, patience)
    for endpoint in reading:
        try:
            ping(endpoint)
        except MirrorError as err:
            reading.failed(endpoint, err)
        else:
            reading.served(endpoint)
            return endpoint
    raise reading.verdict()


def reading_of(what: str, endpoints: Sequence[Endpoint], patience: Patience) -> Reading:
    """A reading at these endpoints. One alone is asked again by its own client, and not by us."""
    if len(endpoints) == 1:
        patience = replace(patience, policy=replace(patience.policy, attempts=1))
    return Reading(what, endpoints, patience)
