"""The client that reaches a cluster's registry correctly in whichever mode the cluster is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from mirror.errors import MirrorError, RegistryNotFoundError
from mirror.events import OnEvent, ignore
from mirror.modes.addressing import (
    LOGICAL_ROOT,
    ClusterRepository,
    below,
    check_catalogue,
    check_write,
)
from mirror.modes.constants import LOGICAL_PATH
from mirror.modes.endpoints import (
    ANYWHERE,
    Endpoint,
    EndpointClients,
    PlaneEndpoints,
    reading_of,
)
from mirror.modes.failover import BlobReading, HealthMemory, ReadingPolicy
from mirror.modes.routes import Plane
from mirror.modes.settings import NO_ACCESS, ClusterAccess, RegistrySettings
from mirror.oci import Child, Descriptor, Digest, Manifest, Repository
from mirror.registry import (
    ConnectionOptions,
    Credentials,
    OpenUpload,
    RegistryClient,
    UploadJournal,
)
from mirror.run import Run

Found = TypeVar("Found")

REPLICA_CONNECT_TIMEOUT_S = 5.0
"""How long to try for a connection where others can be asked instead."""


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
    """The registry of a cluster with these settings, as `plane` reaches it.

    `access` says where the cluster's own replicas are and who we are there. `options` hold for
    every endpoint; scheme and authority come from the settings. `credentials` take the place of
    those in the settings and in `access`. Several clients may share `health`. No network is
    touched.

    Raises:
        RouteError: the settings and `access` do not say where the registry is on that plane.
    """
    return ModeClient(settings, access, plane, options, credentials, health, on_event)


class ModeClient:
    """Reads, and where the mode allows it writes, a cluster's registry. See `connect`.

    A context manager, safe to use from many threads; it can be used wherever a `RegistryClient`
    can. Repositories are named by their logical address
    (`registry.d8-system.svc:5001/system/deckhouse/install`), the address that the mode has them
    at, without host, or relative to the root (`install`; the root itself is the empty text). What
    takes a tag or digest takes it as second argument, or at the end of the first.

    Each reading goes from endpoint to endpoint until one delivers: past those that cannot be
    reached, fail (5xx), refuse the login, do not have the content or have it damaged. Content is
    absent when every endpoint says so. An endpoint that failed is asked last for a while. If a blob
    breaks off, the next endpoint continues it. In Local mode replicas fill up independently, so
    lists (tags, referrers) combine the answers of all that answer.

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
        self._to = PlaneEndpoints(settings, access, plane, credentials)
        self._names = self._to.names
        several = len(self.endpoints) > 1
        if options is None:
            options = ConnectionOptions()
            if several:
                options = replace(options, connect_timeout_s=REPLICA_CONNECT_TIMEOUT_S)
        self._is_view = False
        self._connections = EndpointClients(options, on_event)
        self._patience = ReadingPolicy(
            health or HealthMemory(), options.retries, self._connections.pause, on_event
        )

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where it reads, in the order in which they are asked while all are well."""
        return self._to.endpoints

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
        view._connections = self._connections.within(run)
        view._patience = replace(
            self._patience, sleep=view._connections.pause, on_event=run.on_event
        )
        view._is_view = True
        return view

    def close(self) -> None:
        """End all connections; requests under way in other threads fail with CancelledError."""
        if not self._is_view:
            self._connections.close()

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

        self._read("a registry", ANYWHERE, ask)

    def manifest(self, repository: str, reference: str | Digest | None = None) -> Manifest:
        """Fetch a manifest; see `RegistryClient.manifest`."""
        place, named = self._names.read_image(repository, reference)
        return self._read(
            self._image(place, named),
            place,
            lambda client, repository: client.manifest(repository, named),
        )

    def resolve(self, repository: str, reference: str | Digest | None = None) -> Descriptor | None:
        """What a tag or digest names; None if no endpoint has it."""
        place, named = self._names.read_image(repository, reference)
        try:
            return self._read(
                self._image(place, named),
                place,
                lambda client, repository: client.resolve(repository, named),
            )
        except RegistryNotFoundError:
            return None

    def exists(self, repository: str, reference: str | Digest | None = None) -> bool:
        """Whether some endpoint has a manifest by that tag or digest."""
        return self.resolve(repository, reference) is not None

    def blob_size(self, repository: str, digest: Digest) -> int | None:
        """The length of a blob in bytes; None if no endpoint has it."""
        place = self._names.read(repository)
        try:
            return self._read(
                self._blob_name(place, digest),
                place,
                lambda client, repository: client.blob_size(repository, digest),
            )
        except RegistryNotFoundError:
            return None

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
        is held back until that has succeeded.
        """
        place = self._names.read(repository)
        paths = self._routes_to(place)
        reading = reading_of(self._blob_name(place, digest), tuple(paths), self._patience)
        return BlobReading(
            reading,
            lambda endpoint, position: self._client(endpoint, reading.endpoints).blob(
                paths[endpoint], digest, size=size, offset=position, verify=False
            ),
            digest,
            size,
            offset,
            verify=verify,
        ).chunks()

    def tags(self, repository: str) -> list[str]:
        """All tags of a repository, each once."""
        place = self._names.read(repository)
        what = f"the tags of {self._name(place)}"
        return self._list(what, place, lambda client, path: client.tags(path))

    def referrers(
        self, repository: str, digest: Digest, artifact_type: str | None = None
    ) -> list[Child]:
        """What refers to the manifest `digest`; see `RegistryClient.referrers`."""
        place = self._names.read(repository)
        return self._children(
            place, digest, lambda client, path: client.referrers(path, digest, artifact_type)
        )

    def referrers_api(
        self, repository: str, digest: Digest, artifact_type: str | None = None
    ) -> list[Child] | None:
        """The same as the registry's own API has it; None from one without that API."""
        place = self._names.read(repository)
        without: list[RegistryClient] = []

        def ask(client: RegistryClient, path: str) -> list[Child]:
            found = client.referrers_api(path, digest, artifact_type)
            if found is None:
                without.append(client)
            return found or []

        found = self._children(place, digest, ask)
        return None if without and not found else found

    def _children(
        self,
        place: ClusterRepository,
        digest: Digest,
        ask: Callable[[RegistryClient, str], list[Child]],
    ) -> list[Child]:
        """Referrers, each once. A `Child` cannot be hashed, so lists are merged by digest."""
        known: dict[Digest, Child] = {}

        def digests(client: RegistryClient, path: str) -> list[Digest]:
            children = {child.descriptor.digest: child for child in ask(client, path)}
            known.update(children)
            return list(children)

        found = self._list(f"the referrers of {self._name(place)}@{digest}", place, digests)
        return [known[one] for one in found]

    def catalogue(self) -> Iterator[str]:
        """The logical paths (`system/deckhouse/install`) of all repositories, in order.

        Raises:
            ForbiddenByModeError: this plane's user may not ask that.
        """
        check_catalogue(self.settings, self.plane, self.access)
        place = self._names.read("")

        def ask(client: RegistryClient, root: str) -> list[str]:
            return [
                LOGICAL_PATH + name.removeprefix(root)
                for name in client.catalogue()
                if below(name, root) is not None
            ]

        yield from sorted(self._list(f"the repositories of {self._name(place)}", place, ask))

    # -- writing -------------------------------------------------------------------------------

    def upload(
        self,
        repository: str,
        digest: Digest,
        size: int,
        content: Callable[[int], Generator[bytes, None, None]],
        *,
        opened: OpenUpload | None = None,
        journal: UploadJournal | None = None,
    ) -> int:
        """Send a blob; see `RegistryClient.upload`."""
        client, path = self._writer(repository, "push")
        return client.upload(path, digest, size, content, opened=opened, journal=journal)

    def open_upload(self, repository: str) -> OpenUpload:
        """Open an upload session, which proves that pushing is allowed."""
        client, path = self._writer(repository, "push")
        return client.open_upload(path)

    def cancel_upload(self, repository: str, upload: OpenUpload) -> bool:
        """Let the registry forget a session, and say whether it answered."""
        client, path = self._writer(repository, "push")
        return client.cancel_upload(path, upload)

    def mount_or_open(
        self, repository: str, digest: Digest, from_repository: str
    ) -> bool | OpenUpload:
        """As `mount`, but return the upload session that most registries open instead."""
        client, path = self._writer(repository, "push")
        _, from_path = self._writer(from_repository, "push")
        return client.mount_or_open(path, digest, from_path)

    def mount(self, repository: str, digest: Digest, from_repository: str) -> bool:
        """Make a blob of `from_repository` one of `repository` too, without sending it."""
        client, path = self._writer(repository, "push")
        _, from_path = self._writer(from_repository, "push")
        return client.mount(path, digest, from_path)

    def put_manifest(self, repository: str, reference: str | Digest, manifest: Manifest) -> None:
        """Put `manifest` under a tag or its own digest; see `RegistryClient.put_manifest`."""
        client, path = self._writer(repository, "push")
        client.put_manifest(path, reference, manifest)

    def delete_manifest(self, repository: str, digest: Digest) -> None:
        """Delete a manifest and with it all tags that name it.

        In Local mode the other replicas still have it; a sync with deletion takes it from them.
        """
        client, path = self._writer(repository, "delete")
        client.delete_manifest(path, digest)

    def delete_tag(self, repository: str, tag: str) -> None:
        """Delete a tag and keep its manifest, as far as `delete_manifest` goes."""
        client, path = self._writer(repository, "delete")
        client.delete_tag(path, tag)

    def delete_blob(self, repository: str, digest: Digest) -> None:
        """Delete a blob from a repository, as far as `delete_manifest` goes."""
        client, path = self._writer(repository, "delete")
        client.delete_blob(path, digest)

    # -- which endpoint ------------------------------------------------------------------------

    def _routes_to(self, place: ClusterRepository) -> dict[Endpoint, str]:
        """Where to ask for `place`, and as which repository."""
        return self._to.to(
            place,
            self._patience,
            lambda endpoint: self._connections.client(endpoint, patient=False).ping(),
        )

    def _writer(self, repository: str, action: str) -> tuple[RegistryClient, str]:
        place = self._names.read(repository)
        check_write(self.settings, self.plane, self.access, external=place.external, action=action)
        ((endpoint, path),) = self._routes_to(place).items()
        return self._connections.client(endpoint, patient=True), path

    def _client(self, endpoint: Endpoint, among: Sequence[Endpoint]) -> RegistryClient:
        # One endpoint alone is asked again by its own client; several are gone round by us.
        return self._connections.client(endpoint, patient=len(among) == 1)

    # -- one question --------------------------------------------------------------------------

    def _read(
        self,
        what: str,
        place: ClusterRepository,
        ask: Callable[[RegistryClient, str], Found | None],
    ) -> Found:
        """The answer of the first endpoint that has one.

        Raises:
            RegistryNotFoundError: every endpoint said that it has none.
        """
        paths = self._routes_to(place)
        reading = reading_of(what, tuple(paths), self._patience)
        for endpoint in reading:
            try:
                found = ask(self._client(endpoint, reading.endpoints), paths[endpoint])
            except MirrorError as err:
                reading.failed(endpoint, err)
                continue
            if found is not None:
                reading.served(endpoint)
                return found
            reading.absent(endpoint)
        raise reading.verdict()

    def _list(
        self, what: str, place: ClusterRepository, ask: Callable[[RegistryClient, str], list[Found]]
    ) -> list[Found]:
        """A list of the first that answers; of all, where replicas fill up independently."""
        if not self.settings.kind.row.holds_own_images:
            return self._read(what, place, ask)
        paths = self._routes_to(place)
        reading = reading_of(what, tuple(paths), self._patience)
        found: dict[Found, None] = {}
        for endpoint in reading:
            try:
                listed = ask(self._client(endpoint, reading.endpoints), paths[endpoint])
            except MirrorError as err:
                reading.failed(endpoint, err)
                continue
            reading.served(endpoint)
            found.update(dict.fromkeys(listed))
        if not reading.was_served:
            raise reading.verdict()
        return list(found)

    # -- names ---------------------------------------------------------------------------------

    def _name(self, place: ClusterRepository) -> str:
        return self._names.describe(place)

    def _image(self, place: ClusterRepository, reference: str | Digest) -> str:
        return f"{self._name(place)}{'@' if isinstance(reference, Digest) else ':'}{reference}"

    def _blob_name(self, place: ClusterRepository, digest: Digest) -> str:
        return f"blob {self._name(place)}@{digest}"
