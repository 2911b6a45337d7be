"""Endpoints, and connections to them: each has its own trust and its own login."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field, replace

from pydantic import SecretStr

from mirror.errors import CancelledError, ForbiddenByModeError
from mirror.events import OnEvent, ignore
from mirror.modes.addressing import Plane, Role, Route, routes_for
from mirror.modes.constants import LOGICAL_HOST, LOGICAL_PATH
from mirror.modes.permissions import push_address
from mirror.modes.settings import Mode, RegistrySettings
from mirror.modes.sites import Account, Sites, User
from mirror.oci import Repository
from mirror.registry import ConnectionOptions, Credentials, RegistryClient
from mirror.run import Run


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A registry's address, whom to trust there, and who we are there. `ca` is PEM.

    `is_door`: behind it is one or another of several replicas, and not always the same.
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
        is_door = route.role in (Role.BALANCER, Role.SERVICE)
        return cls(route.scheme, route.host, route.ca, credentials, is_door)

    def connection(self, options: ConnectionOptions) -> ConnectionOptions:
        """`options`, with this endpoint's scheme and authority."""
        authorities = [pem for pem in (self.ca, options.ca) if pem]
        return replace(
            options,
            plain_http=self.scheme == "http",
            ca="\n".join(authorities) if authorities else None,
        )

    def client(self, options: ConnectionOptions, on_event: OnEvent = ignore) -> RegistryClient:
        """A client of its own, which whoever asked for it closes."""
        return RegistryClient(
            self.host,
            options=self.connection(options),
            credentials=self.credentials,
            on_event=on_event,
        )


def replica_endpoints(
    settings: RegistrySettings, sites: Sites, credentials: Credentials | None = None
) -> tuple[tuple[Repository, Endpoint], ...]:
    """Root and endpoint of every replica of a cluster in Local mode, to be read and written.

    One for each master, in order. The login is `credentials`, or that of `mirror-pusher`, or of
    `rw`.

    Raises:
        ForbiddenByModeError: in other modes there is no store to bring into line.
        RouteError: `sites` does not have the masters, or none of those users.
    """
    mode = settings.mode
    if mode is not Mode.LOCAL:
        raise ForbiddenByModeError(
            f"in mode {mode} the cluster has no replicas that hold images of their own; "
            f"what it serves is in {push_address(settings, sites)}",
            mode=mode,
            plane=Plane.REPLICA,
        )
    writer = sites.account(User.MIRROR_PUSHER) or sites.account(User.RW)
    if writer is None and credentials is not None:
        writer = Account(User.MIRROR_PUSHER.value, SecretStr(""))  # `credentials` go before it
    if writer is not None:
        both = {User.MIRROR_PULLER: writer, User.MIRROR_PUSHER: writer}
        sites = replace(sites, accounts={**sites.accounts, **both})
    base = Repository(LOGICAL_HOST, LOGICAL_PATH)
    return tuple(
        (Repository(route.host, route.repository), Endpoint.of(route, credentials))
        for route in routes_for(base, settings, Plane.REPLICA, sites)
    )


class Connections:
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

    def within(self, run: Run) -> Connections:
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
        """End all of them; what is under way in other threads fails with CancelledError."""
        self._closed.set()
        with self._lock:
            for client in self._clients.values():
                client.close()


def _stopped() -> CancelledError:
    return CancelledError("stopped, the connections to the registry were closed")
