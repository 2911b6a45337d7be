"""The client that reaches a cluster's registry correctly in whichever mode the cluster is."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator, Hashable, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeVar

from mirror.errors import CancelledError, RegistryNotFoundError
from mirror.events import OnEvent, ignore
from mirror.modes import LOGICAL_PATH, Plane
from mirror.modes.addressing import (
    LOGICAL_ROOT,
    ClusterRepository,
    RepositoryNames,
    below,
    check_catalogue,
    check_write,
    routes_for,
)
from mirror.modes.endpoints import Endpoint, HealthMemory, Reading, ReadingPolicy
from mirror.modes.settings import NO_ACCESS, ClusterAccess, RegistrySettings
from mirror.oci import Child, Descriptor, Digest, Manifest, Repository
from mirror.registry import ConnectionOptions, Credentials, RegistryClient, RegistryWriter
from mirror.registry.transport import Transport
from mirror.run import Run

Found = TypeVar("Found")

ANYWHERE = ClusterRepository("install")
"""Endpoints are the same for all repositories; an upstream without a path has none at the root."""


def connect(
    settings: RegistrySettings,
    *,
    access: ClusterAccess = NO_ACCESS,
    plane: Plane = Plane.API,
    options: ConnectionOptions | None = None,
    credentials: Credentials | None = None,
    health: HealthMemory[Endpoint] | None = None,
    on_event: OnEvent = ignore,
) -> ModeClient:
    """The registry of a cluster with these settings, as `plane` reaches it. Touches no network.

    `access` says where the cluster's own replicas are and who we are there; `credentials` take the
    place of all others. `options` hold for every endpoint, whose scheme and authority come from the
    settings. Several clients may share `health`.

    Raises:
        RouteError: the settings and `access` do not say where the registry is on that plane.
    """
    return ModeClient(settings, access, plane, options, credentials, health, on_event)


class ModeClient(RegistryWriter):
    """Reads, and where the mode allows it writes, a cluster's registry. See `connect`.

    A context manager, safe to use from many threads, usable wherever a `RegistryClient` is.
    Repositories go by their logical address, by the address that the mode has them at, or relative
    to the root (`install`; the root itself is the empty text). A tag or digest is the second
    argument, or the end of the first.

    Each reading goes from endpoint to endpoint until one delivers, past those that cannot be
    reached, fail (5xx), refuse the login, or have the content damaged or not at all; a blob that
    breaks off is continued. Content is absent when every endpoint says so. An endpoint that failed
    is asked last for a while. In Local mode, tags and referrers combine the answers of all that
    answer.

    In Local mode a deletion takes content from the replica that takes the pushes; the others still
    have it, until a sync with deletion takes it from them.

    Every method raises what the same method of `RegistryClient` does, and:

    * ForbiddenByModeError: the mode does not allow that here; the message says where it does.
    * RouteError: the repository is not one of this cluster's registry.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        access: ClusterAccess,
        plane: Plane,
        options: ConnectionOptions | None,
        credentials: Credentials | None,
        health: HealthMemory[Endpoint] | None,
        on_event: OnEvent,
    ) -> None:
        self.settings, self.access, self.plane = settings, access, plane
        self._credentials = credentials
        self._names = RepositoryNames(settings, access)
        self._endpoints = tuple(self._all_to(ANYWHERE))
        self._choosing = threading.Lock()  # guards _chosen, which views share
        self._chosen: list[Endpoint] = []
        self._hasty = options is None and len(self._endpoints) > 1
        options = options or ConnectionOptions()
        if self._hasty:  # others can be asked instead
            options = replace(options, connect_timeout_s=5.0)
        self._options = options
        self._own = self._run = Run(on_event=on_event)
        self._lock = threading.Lock()  # guards _clients, which views share
        self._clients: dict[tuple[Endpoint, bool], RegistryClient] = {}
        sleep = options.retries.sleep or self._own.sleep
        self._patience = ReadingPolicy(health or HealthMemory(), options.retries, sleep, on_event)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where it reads, in the order in which they are asked while all are well."""
        return self._endpoints

    def __enter__(self) -> ModeClient:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        hosts = ", ".join(endpoint.host for endpoint in self.endpoints)
        return f"ModeClient({self.settings.mode}, {self.plane}: {hosts})"

    def within(self, run: Run) -> ModeClient:
        """A view of this client for one run; see `RegistryClient.within`."""
        view = copy.copy(self)
        view._run = run
        sleep = self._options.retries.sleep or run.sleep
        view._patience = replace(self._patience, sleep=sleep, on_event=run.on_event)
        return view

    def close(self) -> None:
        """End all connections; requests under way in other threads fail with CancelledError."""
        if self._run is not self._own:  # a view
            return
        self._own.cancellation.cancel()
        with self._lock:
            for client in self._clients.values():
                client.close()

    @property
    def host(self) -> str:
        """The host of the logical address, which this client understands in every mode."""
        return self.root.host

    @property
    def root(self) -> Repository:
        """The logical address of everything, for trees: `RegistryTree(client, client.root)`."""
        return LOGICAL_ROOT

    # -- reading -------------------------------------------------------------------------------

    def ping(self) -> None:
        """Check that an endpoint answers and accepts the login."""

        def ask(client: RegistryClient, _: str) -> bool:
            client.ping()
            return True

        next(self._answers("a registry", ANYWHERE, ask))

    def manifest(self, repository: str, reference: str | Digest | None = None) -> Manifest:
        """Fetch a manifest; see `RegistryClient.manifest`."""
        return next(self._images(repository, reference, RegistryClient.manifest))

    def resolve(
        self,
        repository: str,
        reference: str | Digest | None = None,
        *,
        known: Descriptor | None = None,
    ) -> Descriptor | None:
        """What a tag or digest names; None if no endpoint has it. See `RegistryClient.resolve`."""
        ask = partial(RegistryClient.resolve, known=known)
        return _first(self._images(repository, reference, ask))

    def exists(self, repository: str, reference: str | Digest | None = None) -> bool:
        """Whether some endpoint has a manifest by that tag or digest."""
        return self.resolve(repository, reference) is not None

    def blob_size(self, repository: str, digest: Digest) -> int | None:
        """The length of a blob in bytes; None if no endpoint has it."""
        place = self._names.read(repository)
        what = self._blob_name(place, digest)
        return _first(
            self._answers(what, place, lambda client, path: client.blob_size(path, digest))
        )

    def blob(
        self,
        repository: str,
        digest: Digest,
        *,
        size: int | None = None,
        offset: int = 0,
        verify: bool = True,
    ) -> Generator[bytes, None, None]:
        """A blob's bytes from `offset` on; see `RegistryClient.blob`.

        From offset 0 on the whole is verified, even if several endpoints gave parts; the last chunk
        is held back until that has succeeded. Where there are several endpoints it is verified in
        any case, since nobody else can tell which of them is damaged.
        """
        place = self._names.read(repository)
        reading, at = self._reading(self._blob_name(place, digest), place)

        def open_at(endpoint: Endpoint, position: int) -> Generator[bytes, None, None]:
            client, path = at(endpoint)
            return client.blob(path, digest, size=size, offset=position, verify=False)

        verify = verify or len(reading.endpoints) > 1
        return reading.blob(open_at, digest, size, offset, verify=verify)

    def tags(self, repository: str) -> list[str]:
        """All tags of a repository, each once."""
        return self._list("the tags of", repository, "", RegistryClient.tags)

    def referrers(
        self, repository: str, digest: Digest, artifact_type: str | None = None
    ) -> list[Child]:
        """What refers to the manifest `digest`; see `RegistryClient.referrers`."""

        def ask(client: RegistryClient, path: str) -> list[Child]:
            return client.referrers(path, digest, artifact_type)

        return self._list("the referrers of", repository, f"@{digest}", ask, _digest_of)

    def referrers_api(
        self, repository: str, digest: Digest, artifact_type: str | None = None
    ) -> list[Child] | None:
        """The same as the registry's own API has it; None from one without that API."""
        without: list[RegistryClient] = []

        def ask(client: RegistryClient, path: str) -> list[Child]:
            found = client.referrers_api(path, digest, artifact_type)
            if found is None:
                without.append(client)
            return found or []

        found = self._list("the referrers of", repository, f"@{digest}", ask, _digest_of)
        return None if without and not found else found

    def catalogue(self) -> Iterator[str]:
        """The logical paths (`system/deckhouse/install`) of all repositories, in order.

        Raises:
            ForbiddenByModeError: this plane's user may not ask that.
        """
        check_catalogue(self.settings, self.plane, self.access)

        def ask(client: RegistryClient, root: str) -> list[str]:
            return [
                LOGICAL_PATH + name.removeprefix(root)
                for name in client.catalogue()
                if below(name, root) is not None
            ]

        yield from sorted(self._list("the repositories of", "", "", ask))

    # -- which endpoint ------------------------------------------------------------------------

    def _all_to(self, place: ClusterRepository) -> dict[Endpoint, str]:
        """Where `place` can be asked for, in order, and as which repository."""
        address = self._names.address(place, self.plane)
        routes = routes_for(address, self.settings, self.plane, self.access)
        return {Endpoint.of(route, self._credentials): route.repository for route in routes}

    def _routes_to(self, place: ClusterRepository) -> dict[Endpoint, str]:
        """The same, but an operator reads from the one replica that takes the pushes.

        That is always the first that answered: the others may not have what a push left there.
        """
        paths = self._all_to(place)
        if self.plane is not Plane.OPERATOR or len(paths) == 1:
            return paths

        def ping(endpoint: Endpoint) -> Endpoint:
            self._client(endpoint, patient=False).ping()
            return endpoint

        with self._choosing:
            if not self._chosen:
                reading = Reading("a replica to push to", self._endpoints, self._patience)
                self._chosen.append(next(reading.answers(ping)))
            (chosen,) = self._chosen
        return {chosen: paths[chosen]}

    def _writing(self, repository: str, action: str = "push") -> tuple[Transport, str]:
        place = self._names.read(repository)
        check_write(self.settings, self.plane, self.access, external=place.external, action=action)
        ((endpoint, path),) = self._routes_to(place).items()
        return self._client(endpoint, patient=True)._writing(path, action)

    def _client(self, endpoint: Endpoint, *, patient: bool) -> RegistryClient:
        """The client of `endpoint`, made when it is first needed; a `patient` one tries again."""
        with self._lock:
            if self._own.stopped:
                raise CancelledError("stopped, the connections to the registry were closed")
            known = self._clients.get((endpoint, patient))
            if known is None:
                options = self._options
                if not patient:
                    once = replace(options.retries, attempts=1, retry_for_s=0.0)
                    options = replace(options, retries=once)
                    if self._hasty:  # who takes a push may think longer
                        options = replace(options, stall_timeout_s=10.0)
                known = endpoint.client(options)
                self._clients[endpoint, patient] = known
            return known.within(self._run)

    # -- one question --------------------------------------------------------------------------

    def _reading(
        self, what: str, place: ClusterRepository
    ) -> tuple[Reading, Callable[[Endpoint], tuple[RegistryClient, str]]]:
        """A reading of `what`, and for each endpoint its client and the repository to name."""
        paths = self._routes_to(place)
        # One endpoint alone is asked again by its own client; several are gone round by us.
        patient = len(paths) == 1

        def at(endpoint: Endpoint) -> tuple[RegistryClient, str]:
            return self._client(endpoint, patient=patient), paths[endpoint]

        return Reading(what, tuple(paths), self._patience), at

    def _answers(
        self,
        what: str,
        place: ClusterRepository,
        ask: Callable[[RegistryClient, str], Found | None],
    ) -> Iterator[Found]:
        reading, at = self._reading(what, place)
        return reading.answers(lambda endpoint: ask(*at(endpoint)))

    def _images(
        self,
        repository: str,
        reference: str | Digest | None,
        ask: Callable[[RegistryClient, str, str | Digest], Found | None],
    ) -> Iterator[Found]:
        place, named = self._names.read_image(repository, reference)
        what = f"{self._names.describe(place)}{'@' if isinstance(named, Digest) else ':'}{named}"
        return self._answers(what, place, lambda client, path: ask(client, path, named))

    def _list(
        self,
        what: str,
        repository: str,
        rest: str,
        ask: Callable[[RegistryClient, str], list[Found]],
        key: Callable[[Found], Hashable] = lambda one: one,
    ) -> list[Found]:
        """A list of the first that answers; of all, where replicas fill up independently."""
        place = self._names.read(repository)
        answers = self._answers(f"{what} {self._names.describe(place)}{rest}", place, ask)
        if not self.settings.kind.row.holds_own_images:
            return next(answers)
        return list({key(one): one for listed in answers for one in listed}.values())

    def _blob_name(self, place: ClusterRepository, digest: Digest) -> str:
        return f"blob {self._names.describe(place)}@{digest}"


def _first(answers: Iterator[Found]) -> Found | None:
    """The answer of the first endpoint that has one; None if every one says that it has none."""
    try:
        return next(answers)
    except RegistryNotFoundError:
        return None


def _digest_of(child: Child) -> Digest:
    return child.descriptor.digest
