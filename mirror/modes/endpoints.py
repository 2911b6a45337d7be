"""Endpoints, connections to them, and which are asked for a repository.

Each endpoint has its own trust and its own login.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pydantic import SecretStr

from mirror.errors import CancelledError, ForbiddenByModeError, MirrorError
from mirror.events import OnEvent, ignore
from mirror.modes.addressing import (
    LOGICAL_ROOT,
    ClusterRepository,
    RepositoryNames,
    Route,
    push_address,
    routes_for,
)
from mirror.modes.constants import RegistryUser
from mirror.modes.failover import Reading, ReadingPolicy
from mirror.modes.routes import DOORS, Plane
from mirror.modes.settings import Account, ClusterAccess, RegistrySettings
from mirror.oci import Repository
from mirror.registry import ConnectionOptions, Credentials, RegistryClient
from mirror.run import Run


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A registry's address, the authority to trust there (PEM), and our login.

    `is_door`: any of several replicas may answer behind it.
    """

    scheme: str
    host: str
    ca: str | None = field(default=None, repr=False)
    credentials: Credentials | None = None
    is_door: bool = False

    @classmethod
    def of(cls, route: Route, credentials: Credentials | None = None) -> Endpoint:
        """Where `route` leads; `credentials` take the place of its own."""
        if credentials is None and route.credential is not None:
            account = route.credential
            credentials = Credentials(account.name, account.password.get_secret_value())
        return cls(route.scheme, route.host, route.ca, credentials, route.role in DOORS)

    def connection(self, options: ConnectionOptions) -> ConnectionOptions:
        """`options`, with this endpoint's scheme and authority."""
        authorities = [pem for pem in (self.ca, options.ca) if pem]
        return replace(
            options,
            plain_http=self.scheme == "http",
            ca="\n".join(authorities) if authorities else None,
        )

    def client(self, options: ConnectionOptions, on_event: OnEvent = ignore) -> RegistryClient:
        """A new client; the caller closes it."""
        return RegistryClient(
            self.host,
            options=self.connection(options),
            credentials=self.credentials,
            on_event=on_event,
        )


def replica_endpoints(
    settings: RegistrySettings, access: ClusterAccess, credentials: Credentials | None = None
) -> tuple[tuple[Repository, Endpoint], ...]:
    """Root and endpoint of every replica of a cluster in Local mode, to be read and written.

    One for each master, in order. The login is `credentials`, or that of `mirror-pusher`, or of
    `rw`.

    Raises:
        ForbiddenByModeError: in other modes replicas have no images of their own.
        RouteError: `access` does not name the masters, or has none of those users.
    """
    mode = settings.mode
    if not settings.kind.row.holds_own_images:
        raise ForbiddenByModeError(
            f"in mode {mode} the cluster has no replicas that hold images of their own; "
            f"what it serves is in {push_address(settings, access)}",
            mode=mode,
            plane=Plane.REPLICA,
        )
    writer = access.account(RegistryUser.MIRROR_PUSHER) or access.account(RegistryUser.RW)
    if writer is None and credentials is not None:
        writer = Account(
            RegistryUser.MIRROR_PUSHER.value, SecretStr("")
        )  # `credentials` go before it
    if writer is not None:
        both = {RegistryUser.MIRROR_PULLER: writer, RegistryUser.MIRROR_PUSHER: writer}
        access = replace(access, accounts={**access.accounts, **both})
    return tuple(
        (Repository(route.host, route.repository), Endpoint.of(route, credentials))
        for route in routes_for(LOGICAL_ROOT, settings, Plane.REPLICA, access)
    )


class EndpointClients:
    """A client for each endpoint, made when it is first needed. Thread-safe.

    A login is part of its endpoint, so that a client never has the login of another one.
    """

    def __init__(self, options: ConnectionOptions, on_event: OnEvent) -> None:
        self._options, self._on_event = options, on_event
        self._run: Run | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()  # guards _clients
        self._clients: dict[tuple[Endpoint, bool], RegistryClient] = {}

    def client(self, endpoint: Endpoint, *, patient: bool) -> RegistryClient:
        """The client of `endpoint`; a `patient` one tries again where that can help.

        Raises:
            CancelledError: closed already.
            InputError: the endpoint's authority cannot be used.
        """
        with self._lock:
            if self._closed.is_set():
                raise _stopped()
            known = self._clients.get((endpoint, patient))
            if known is None:
                known = self._made(endpoint, patient=patient)
                self._clients[endpoint, patient] = known
            return known if self._run is None else known.within(self._run)

    def within(self, run: Run) -> EndpointClients:
        """The same connections for one run, which every wait listens to."""
        view = copy.copy(self)
        view._run = run
        return view

    def _made(self, endpoint: Endpoint, *, patient: bool) -> RegistryClient:
        options = self._options
        if not patient:
            options = replace(options, retries=replace(options.retries, attempts=1))
        return endpoint.client(options, self._on_event)

    def pause(self, delay_s: float) -> None:
        """Wait, unless these connections are closed meanwhile or the run is stopped.

        Raises:
            CancelledError: that happened.
        """
        sleep = self._options.retries.sleep
        if sleep is not None:
            sleep(delay_s)
        elif self._run is not None:
            self._run.sleep(delay_s)
        elif self._closed.wait(delay_s):
            raise _stopped()

    def close(self) -> None:
        """End all connections; requests under way in other threads fail with CancelledError."""
        self._closed.set()
        with self._lock:
            for client in self._clients.values():
                client.close()


def _stopped() -> CancelledError:
    return CancelledError("stopped, the connections to the registry were closed")


# -- which endpoints are asked ---------------------------------------------------------------------

ANYWHERE = ClusterRepository("install")
"""Endpoints are the same for all repositories; an upstream without a path has none at the root."""


class PlaneEndpoints:
    """The endpoints of one plane under given settings. Thread-safe.

    `credentials` take the place of those of the routes.

    Raises:
        RouteError: the settings and the access do not say where the registry is on that plane.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        access: ClusterAccess,
        plane: Plane,
        credentials: Credentials | None,
    ) -> None:
        self.names = RepositoryNames(settings, access)
        self._settings, self._access, self._plane = settings, access, plane
        self._credentials = credentials
        self.endpoints = tuple(self.all_to(ANYWHERE))
        self._lock = threading.Lock()  # guards _choice
        self._choice: Endpoint | None = None

    def all_to(self, repository: ClusterRepository) -> dict[Endpoint, str]:
        """Where `repository` can be asked for, in order, and as which repository."""
        address = self.names.address(repository, self._plane)
        routes = routes_for(address, self._settings, self._plane, self._access)
        return {Endpoint.of(route, self._credentials): route.repository for route in routes}

    def to(
        self,
        repository: ClusterRepository,
        patience: ReadingPolicy[Endpoint],
        ping: Callable[[Endpoint], None],
    ) -> dict[Endpoint, str]:
        """The same, but an operator reads from the one endpoint that he writes to.

        Raises:
            UnreachableError: no endpoint answers `ping`.
        """
        ways = self.all_to(repository)
        if self._plane is not Plane.OPERATOR or len(ways) == 1:
            return ways
        chosen = self._chosen(patience, ping)
        return {chosen: ways[chosen]}

    def _chosen(
        self, patience: ReadingPolicy[Endpoint], ping: Callable[[Endpoint], None]
    ) -> Endpoint:
        """The replica that takes pushes: the first that answers, and then always the same.

        What a push found or left at one replica may not be at another.
        """
        with self._lock:
            if self._choice is None:
                self._choice = _first_that_answers(self.endpoints, patience, ping)
            return self._choice


def _first_that_answers(
    endpoints: Sequence[Endpoint],
    patience: ReadingPolicy[Endpoint],
    ping: Callable[[Endpoint], None],
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


def reading_of(
    what: str, endpoints: Sequence[Endpoint], patience: ReadingPolicy[Endpoint]
) -> Reading[Endpoint]:
    """A reading at these endpoints. A single one is retried by its own client, not here."""
    if len(endpoints) == 1:
        patience = replace(patience, policy=replace(patience.policy, attempts=1))
    return Reading(what, endpoints, patience)
