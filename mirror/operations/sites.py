"""Sites: the registries that a sync, a comparison or a clean-up is about, and what they say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mirror.errors import RegistryError, UnreachableError
from mirror.events import OnEvent, ignore
from mirror.layout import (
    FIXED_REPOSITORIES,
    INDEX_REPOSITORIES,
    TargetTree,
    names_component,
    repositories_of,
)
from mirror.modes.endpoints import replica_endpoints
from mirror.modes.settings import ClusterAccess, RegistrySettings
from mirror.registry import ConnectionOptions, Credentials, RegistryClient, RegistryReader
from mirror.run import Run
from mirror.sync import Inventory
from mirror.sync.observation import Failure, Observation
from mirror.sync.observe import listed_tags
from mirror.sync.registry import RegistrySource, RegistryTarget
from mirror.sync.statement import REPOSITORY
from mirror.sync.storage import Storage
from mirror.sync.walk import Memory, walk


@dataclass(frozen=True, slots=True)
class Site:
    """One registry with the tree that lies in it. The client is the caller's, who closes it.

    `storage` is the registry's data root, where it can be reached: damaged files are replaced
    there.
    """

    client: RegistryClient
    tree: TargetTree
    storage: Path | None = None

    @property
    def name(self) -> str:
        """What a person calls it: `host:port/path`."""
        return str(self.tree.root)

    @property
    def files(self) -> Storage | None:
        """Its data root, if it was named."""
        return None if self.storage is None else Storage(self.storage)

    def within(self, run: Run) -> Site:
        """The same, every wait of which listens to `run`."""
        return replace(self, client=self.client.within(run))

    def source(self) -> RegistrySource:
        """It as a source."""
        return RegistrySource(self.client, self.tree.locate, self.name)

    def place(self, *, run: Run | None = None) -> RegistryTarget:
        """It as a target."""
        return RegistryTarget(self.client, self.tree.locate, self.name, run=run)


@contextmanager
def replica_sites(
    settings: RegistrySettings,
    sites: ClusterAccess,
    *,
    options: ConnectionOptions | None = None,
    credentials: Credentials | None = None,
    on_event: OnEvent = ignore,
) -> Iterator[list[Site]]:
    """The replicas of a cluster in Local mode, one for each master, for `sync_replicas`.

    The login is `credentials`, or that of `mirror-pusher`, or of `rw`. At the end the clients are
    closed. No network is touched here.

    Raises:
        ForbiddenByModeError: in other modes there is no store to bring into line.
        RouteError: `sites` does not have the masters, or none of those users.
    """
    with ExitStack() as opened:
        yield [
            Site(
                opened.enter_context(endpoint.client(options or ConnectionOptions(), on_event)),
                TargetTree(root),
            )
            for root, endpoint in replica_endpoints(settings, sites, credentials)
        ]


def walk_site(
    site: Site,
    known: Inventory | None = None,
    *,
    memory: Memory | None = None,
    run: Run | None = None,
) -> Observation:
    """The complete subset of what `walk_open` finds."""
    return walk_open(site, known, memory=memory, run=run).complete()


def walk_open(
    site: Site,
    known: Inventory | None = None,
    *,
    memory: Memory | None = None,
    run: Run | None = None,
) -> Observation:
    """What lies below the site's root. Its repositories are those of `known`, which spares reading
    manifests too, and those that the registry lists.

    Of a registry that does not list them, and with nothing known, those are looked at that a
    release tree has by its nature; that there may be others is among the failures then.
    """
    paths = set(known.repositories) if known is not None else set()
    unlisted: tuple[Failure, ...] = ()
    listed = listed_repositories(site.client, site.tree)
    if not isinstance(listed, RegistryError):
        paths.update(listed)
    elif not paths:
        paths.update(usual_repositories(site.client, site.tree))
        unlisted = (Failure(site.name, "its list of repositories", listed),)
    found = walk(site.source(), paths, known=known, memory=memory, run=Run.of(run).quietly())
    return replace(found, general=unlisted)


def listed_repositories(client: RegistryReader, tree: TargetTree) -> set[str] | RegistryError:
    """The paths of all repositories below the root that the registry lists, without statements;
    or why it lists none: many do so for nobody, or for administrators alone.

    Raises:
        UnreachableError: it does not answer.
    """
    try:
        paths = {tree.path_of(repository) for repository in client.catalogue()}
    except UnreachableError:
        raise
    except RegistryError as err:
        return err
    return {path for path in paths if path is not None and path != REPOSITORY}


def usual_repositories(client: RegistryReader, tree: TargetTree) -> Iterator[str]:
    """The repositories that a release tree has by its nature, and those of every module, package
    and plugin that its index names; not all of them need exist."""
    yield from FIXED_REPOSITORIES
    for index in INDEX_REPOSITORIES:
        for name in listed_tags(client, tree.locate(index)):
            if names_component(name):
                yield from repositories_of(index, name)
