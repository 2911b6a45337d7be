"""What a registry tree holds: its repositories, and what lies in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from semver import Version

from mirror.documents import document
from mirror.errors import (
    CancelledError,
    DeadlineError,
    IncompleteError,
    InputError,
    InvalidManifestError,
    MirrorError,
    RegistryError,
    RegistryNotFoundError,
    StalledError,
    UnreachableError,
    common_exit_code,
)
from mirror.events import OnEvent, Warned, ignore
from mirror.layout import (
    CHANNELS,
    FIXED_REPOSITORIES,
    INDEX_REPOSITORIES,
    RELEASE_CHANNEL,
    names_component,
    repositories_of,
    tags_of_versions,
)
from mirror.oci import Digest
from mirror.operations.images import read_image
from mirror.registry import ConnectionOptions, Credentials
from mirror.release.discovery import (
    CHANGELOG_YAML,
    VERSION_JSON,
    ReleaseInfo,
    parse_changelog,
    parse_release,
)
from mirror.run import Run, gather
from mirror.sync import Inventory
from mirror.sync.observation import Failure, Observation
from mirror.sync.publication_state import read_state
from mirror.sync.statement import REPOSITORY
from mirror.sync.tree import RegistryTree
from mirror.sync.walk import Memory, walk

if TYPE_CHECKING:
    from mirror.modes.settings import ClusterAccess, RegistrySettings


@dataclass(frozen=True)
class RegistryInventory:
    """What a registry holds below a root.

    `inventory` is open where manifests need something that is missing or could not be read.
    `failures` are items that could not be read, `notices` name items that cannot be carried; the
    inventory has neither. `requests` counts the requests to the tree's repositories.
    """

    target: str
    inventory: Inventory
    requests: int
    notices: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()

    @cached_property
    def digest(self) -> Digest:
        """The digest of the inventory."""
        return self.inventory.digest()

    @cached_property
    def gaps(self) -> int:
        """How many manifests and blobs are promised and not in the inventory."""
        return sum(1 for _ in self.inventory.gaps())

    @property
    def unread(self) -> IncompleteError | None:
        """The failures as one error; None if there are none."""
        if not self.failures:
            return None
        return IncompleteError(
            f"{self.target}: this could not be read and is left out:",
            [(failure.item, failure.error) for failure in self.failures],
        )

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, else the code that all failures share, or 1."""
        return common_exit_code(failure.error for failure in self.failures)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        counted = ("target", "inventory=digest", "requests", "gaps")
        return {**document(self, *counted, "notices", "failures"), **self.inventory.counts()}


def registry_inventory(
    tree: RegistryTree, *, known: Iterable[str] = (), run: Run | None = None
) -> RegistryInventory:
    """Take the inventory of everything that the registry holds below the tree's root.

    Its repositories are those that it lists (`GET /v2/_catalog`), those that every release tree
    has, those of the modules, packages and plugins that its indexes name, those of its published
    statement, and `known`: paths that the caller learnt elsewhere, from a previous bundle, say. The
    statement also names manifests that no tag leads to; each is asked for all the same. Statements
    themselves are left out. Something that is overlooked or cannot be read, which a warning names,
    only makes the next delta larger than necessary.

    Raises:
        DeniedError, UnreachableError: the registry as a whole refuses, or does not answer.
        RegistryError: it does not list the tags of a repository.
        IncompleteError: nothing at all could be read.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    tree = tree.within(run)
    tree.client.ping()  # one clear answer about name, TLS and login, before many ask in parallel
    stated = _stated(tree, run)
    paths = {*known, *stated.repositories, *usual_repositories(tree)}
    listed = listed_repositories(tree)
    if not isinstance(listed, RegistryError):
        paths.update(listed)
    elif not stated.repositories:
        run.on_event(
            Warned(
                f"{tree.client.host} does not list its repositories ({listed}); those of the "
                "release tree are looked at, which leaves out extra images of modules unless "
                "--known names a bundle that has them"
            )
        )
    found = walk(tree.source(), paths, known=stated, blobs=True, run=run)
    odd = [one for one in found.failures if isinstance(one.error, InvalidManifestError)]
    seen = RegistryInventory(
        tree.name,
        found.held,
        found.requests,
        tuple(f"{one.item} is left out: {one.error}" for one in odd),
        tuple(one for one in found.failures if one not in odd),
    )
    for notice in seen.notices:
        run.on_event(Warned(notice))
    if seen.unread is not None:
        if not seen.inventory.repositories:
            raise seen.unread
        run.on_event(Warned(str(seen.unread)))
    return seen


def _stated(tree: RegistryTree, run: Run) -> Inventory:
    """What the registry states that it holds; an empty inventory if it states nothing usable."""
    try:
        return read_state(tree, run).stated
    except UnreachableError:
        raise
    except (RegistryError, InputError) as err:
        run.on_event(Warned(f"what {tree.name} states that it holds is not looked at: {err}"))
        return Inventory()


# -- which repositories there are ------------------------------------------------------------------


Answer = TypeVar("Answer")


@contextmanager
def replica_trees(
    settings: RegistrySettings,
    access: ClusterAccess,
    *,
    options: ConnectionOptions | None = None,
    credentials: Credentials | None = None,
    on_event: OnEvent = ignore,
) -> Iterator[list[RegistryTree]]:
    """The replicas of a cluster in Local mode, one for each master, for `sync_replicas`.

    The login is `credentials`, or that of `mirror-pusher`, or of `rw`. At the end the clients are
    closed. No network is touched here.

    Raises:
        ForbiddenByModeError: in other modes there is no store to bring into line.
        RouteError: `access` does not have the masters, or none of those users.
    """
    from mirror.modes.endpoints import replica_endpoints

    with ExitStack() as opened:
        yield [
            RegistryTree(
                opened.enter_context(endpoint.client(options or ConnectionOptions(), on_event)),
                root,
            )
            for root, endpoint in replica_endpoints(settings, access, credentials)
        ]


def walk_tree(
    tree: RegistryTree,
    known: Inventory | None = None,
    *,
    memory: Memory | None = None,
    run: Run | None = None,
) -> Observation:
    """What lies in the tree. Its repositories are those that the registry lists, and those of
    `known`, whose manifests need not be read again.

    If the registry does not list them and nothing is known, the repositories are looked at that
    every release tree has; a failure says that there may be others. `memory` is what the registry
    answered at the last walk (`mirror.sync.walk`).
    """
    paths = set(known.repositories) if known is not None else set()
    unlisted: tuple[Failure, ...] = ()
    listed = listed_repositories(tree)
    if not isinstance(listed, RegistryError):
        paths.update(listed)
    elif not paths:
        paths.update(usual_repositories(tree))
        unlisted = (Failure(tree.name, "its list of repositories", listed),)
    found = walk(
        *(tree.source(), paths),
        known=known,
        memory=memory,
        rules=tree.rules,
        run=Run.of(run).quietly(),
    )
    return replace(found, general=unlisted)


def listed_repositories(tree: RegistryTree) -> set[str] | RegistryError:
    """The paths of the tree's repositories that the registry lists, that of statements left out.

    Or the reason why it lists none: many registries refuse that to everybody but administrators.
    """
    try:
        paths = {tree.path_of(repository) for repository in tree.client.catalogue()}
    except UnreachableError:
        raise
    except RegistryError as err:
        return err
    return {path for path in paths if path is not None and path != REPOSITORY}


def usual_repositories(tree: RegistryTree) -> Iterator[str]:
    """The repositories that every release tree has, and those of each module, package and plugin
    that its indexes name. Not all of them need exist."""
    yield from FIXED_REPOSITORIES
    for index in INDEX_REPOSITORIES:
        for name in tree.listed_tags(index):
            if names_component(name):
                yield from repositories_of(index, name)


def ask_at_once(
    trees: Sequence[RegistryTree],
    question: Callable[[RegistryTree], Answer],
    *,
    patience_s: float | None = None,
    jobs: int | None = None,
    run: Run,
) -> list[Answer | MirrorError]:
    """The answers to `question`, or why there is none, in the order of `trees`.

    All are asked at once, or `jobs` at a time, and none for longer than `patience_s` seconds.
    """

    def ask(tree: RegistryTree) -> tuple[Answer | MirrorError]:
        # In a tuple: to the workers an error that is returned is not an error.
        try:
            patient = patience_s is None
            return (question(tree if patient else tree.within(run.with_deadline(patience_s))),)
        except DeadlineError as err:
            run.check()
            silent = StalledError(f"no answer within {patience_s:g} s", where=tree.name)
            silent.__cause__ = err
            return (silent,)
        except CancelledError:
            raise
        except MirrorError as err:
            return (err,)

    return [
        answer for (answer,) in gather(trees, ask, run=run.with_jobs(jobs or max(1, len(trees))))
    ]


# -- what a release tree publishes, as a controller asks for it ------------------------------------


@dataclass(frozen=True, slots=True)
class Release:
    """A release, as its image describes it.

    Attributes:
        digest: what the tag names.
        changelog: `changelog.yaml`: module → its changes; empty without that file.
    """

    info: ReleaseInfo
    digest: Digest
    changelog: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "changelog", MappingProxyType(dict(self.changelog)))

    @property
    def version(self) -> Version:
        """The version that its `version.json` names."""
        return self.info.version


@dataclass(frozen=True, slots=True)
class ReleaseList:
    """The versions that are published, the newest last, and where each release channel leads."""

    versions: tuple[Version, ...]
    channels: Mapping[str, Version]

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", MappingProxyType(dict(self.channels)))


def read_release(tree: RegistryTree, tag: str, repository: str = RELEASE_CHANNEL) -> Release:
    """What a release channel or a version (`stable`, `v1.70.1`) leads to.

    `repository` is the platform's `release-channel`, or `modules/<name>/release` and
    `packages/<name>/version`.

    Raises:
        SourceContentError: the image has no `version.json`, or what it says cannot be read.
        DigestMismatchError, SizeMismatchError: a layer is damaged wherever it can be had.
        RegistryNotFoundError: this channel or version does not exist.
        RegistryError: the registry does not answer.
    """
    place = tree.locate(repository)
    digest = tree.client.manifest(place, tag).digest
    found = read_image(tree.client, place, digest, (VERSION_JSON, CHANGELOG_YAML))
    where = f"{tree.name}/{repository}:{tag}"
    of_platform = repository == RELEASE_CHANNEL
    info = parse_release(found.get(VERSION_JSON), where, version_only=not of_platform)
    return Release(info, digest, parse_changelog(found.get(CHANGELOG_YAML, b""), where))


def list_releases(tree: RegistryTree, repository: str = RELEASE_CHANNEL) -> ReleaseList:
    """All versions of the platform, or of what `repository` belongs to, and all its channels.

    Raises:
        what `read_release` raises, for one of the channels.
    """
    tags = tree.client.tags(tree.locate(repository))
    versions = tags_of_versions(tags)
    channels = {}
    for name in filter(tags.__contains__, CHANNELS):
        with suppress(RegistryNotFoundError):  # it went in the meantime
            channels[name] = read_release(tree, name, repository).version
    return ReleaseList(tuple(versions), channels)
