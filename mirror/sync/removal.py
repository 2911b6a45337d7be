"""Removal: what goes is decided purely, then removed one by one. Only here images are deleted.

A registry deletes a manifest together with every tag that names it, and many cannot delete a tag
alone (`deletes_tags`). There a tag whose manifest has to stay is first set to a small manifest of
its own, and that manifest is deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import groupby
from typing import TypeVar

from mirror.errors import (
    ConflictError,
    MirrorError,
    PruneRefusedError,
    RegistryError,
    RegistryNotFoundError,
    UnreachableError,
)
from mirror.events import Warned
from mirror.layout import publication_stage
from mirror.oci import Digest
from mirror.oci.reference import referrers_tag
from mirror.run import Run, for_each
from mirror.sync.inventory import Inventory, RepositoryContent
from mirror.sync.observation import Failure
from mirror.sync.plan import PutTag, TagStage
from mirror.sync.statement import REPOSITORY, make_artifact, put_artifact
from mirror.sync.tree import RegistryTree

Item = TypeVar("Item")
Drop = TypeVar("Drop", bound="DropTag | DropManifest")


@dataclass(frozen=True, slots=True)
class DropTag:
    """Remove a tag, and keep the manifest `digest` that it names."""

    repository: str
    tag: str
    digest: Digest

    def __str__(self) -> str:
        return f"tag {self.repository or '/'}:{self.tag}"


@dataclass(frozen=True, slots=True)
class DropManifest:
    """Remove a manifest together with `tags`, which are all that name it."""

    repository: str
    digest: Digest
    tags: tuple[str, ...] = ()

    def __str__(self) -> str:
        named = f" ({', '.join(self.tags)})" if self.tags else ""
        return f"manifest {self.repository or '/'}@{self.digest}{named}"


@dataclass(frozen=True, slots=True)
class Removal:
    """What is removed, in this order: tags, then manifests, indexes before their children."""

    tags: tuple[DropTag, ...] = ()
    manifests: tuple[DropManifest, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tags or self.manifests)

    @property
    def tag_count(self) -> int:
        """How many tags will be gone."""
        return len(self.names)

    @property
    def names(self) -> list[tuple[str, str]]:
        """The repository and name of each tag that will be gone."""
        named = [(one.repository, tag) for one in self.manifests for tag in one.tags]
        return [*((one.repository, one.tag) for one in self.tags), *named]

    @property
    def items(self) -> list[str]:
        """Each tag and manifest as text."""
        return [*map(str, self.tags), *map(str, self.manifests)]

    def only(self, items: Collection[DropTag | DropManifest]) -> Removal:
        """Those of it that are among `items`."""
        among = set(items)
        return Removal(
            tuple(one for one in self.tags if one in among),
            tuple(one for one in self.manifests if one in among),
        )

    def to_document(self) -> dict[str, object]:
        """As JSON values, for `--json`."""
        return {
            "tags": [{"repository": path, "tag": tag} for path, tag in self.names],
            "manifests": [
                {"repository": m.repository, "digest": str(m.digest)} for m in self.manifests
            ],
        }


def plan_removal(there: Inventory, keep: Inventory, scope: Collection[str]) -> Removal:
    """Decide what to remove from `there`, so that `scope` has only what `keep` names. Pure.

    `scope` are the repositories to look at. A tag stays if `keep` has one of that name, and with it
    whatever it names now and all that this reaches. So does a tag under which a registry without
    the referrers API lists what refers to something that stays.
    """
    tags: list[DropTag] = []
    manifests: list[DropManifest] = []
    for path in sorted(set(scope) & there.repositories.keys()):
        content, kept = there.repository(path), keep.repository(path)
        needed = _needed(content, kept)
        staying = kept.tags.keys() | set(map(referrers_tag, needed))
        going: dict[Digest, list[str]] = {}
        for tag, digest in sorted(content.tags.items()):
            if tag in staying:
                continue
            if digest in needed:
                tags.append(DropTag(path, tag, digest))
            else:
                going.setdefault(digest, []).append(tag)
        order = TopologicalSorter(
            {
                digest: sorted(child.digest for child in node.children)
                for digest, node in sorted(content.manifests.items())
            }
        )
        parents_first = [d for d in reversed(tuple(order.static_order())) if d in content.manifests]
        # A tag may name a manifest that could not be read, which goes like any other.
        unread = sorted(going.keys() - content.manifests.keys())
        manifests += (
            DropManifest(path, digest, tuple(going.get(digest, ())))
            for digest in (*parents_first, *unread)
            if digest not in needed
        )
    return Removal(tuple(tags), tuple(manifests))


def _needed(content: RepositoryContent, kept: RepositoryContent) -> set[Digest]:
    """Manifests that stay: those `kept` names, those its tags name now, and what these reach.

    What refers to one of them stays, too, if the registry lists it under a tag of its own.
    """
    known = RepositoryContent(manifests={**kept.manifests, **content.manifests})
    needed: set[Digest] = set()
    more = {*kept.manifests, *kept.tags.values()}
    more |= {digest for tag, digest in content.tags.items() if tag in kept.tags}
    while more:
        reached = known.reachable(more)
        needed |= more | reached
        needed |= {child.digest for one in reached for child in known.manifests[one].children}
        own = set(map(referrers_tag, needed))
        more = {digest for tag, digest in content.tags.items() if tag in own} - needed
    return needed


def check_deletes(tree: RegistryTree) -> None:
    """Check that the registry deletes at all, by asking it to delete a manifest that nobody has.

    Raises:
        PruneRefusedError: it does not.
    """
    try:
        with suppress(RegistryNotFoundError):
            tree.client.delete_manifest(tree.locate(REPOSITORY), Digest.of(b"nothing"))
    except RegistryError as err:
        if err.status not in (405, 501) and "UNSUPPORTED" not in err.codes:
            raise
        raise PruneRefusedError(
            f"{tree.name}: nothing was pruned: the registry deletes nothing; in the configuration "
            f"of CNCF distribution set storage.delete.enabled: true ({err})"
        ) from err


def remove(
    removal: Removal,
    tree: RegistryTree,
    *,
    gone: list[DropTag | DropManifest] | None = None,
    run: Run,
) -> tuple[Failure, ...]:
    """Carry out `removal`; return what could not be removed, with the reasons.

    Manifests are not begun where a tag could not be removed. What is gone already counts as done.
    Everything that is gone is added to the list `gone`, in no order.

    Raises:
        CancelledError: the run was stopped.
    """
    done = [] if gone is None else gone

    def dropping(drop: Callable[[RegistryTree, Drop], None]) -> Callable[[Drop], None]:
        def work(one: Drop) -> None:
            drop(tree, one)
            done.append(one)  # by several threads, which a list allows

        return work

    if removal.tags and deletes_tags(tree, "trial"):  # beside the statements
        failures = _each(
            removal.tags,
            dropping(lambda _, one: delete_tag(tree, one.repository, one.tag)),
            tree,
            run,
        )
    else:
        # One after another within a repository: to delete a manifest, distribution reads all of
        # the repository's tags, and fails on one that is being written at that moment.
        failures = _each_in_order(removal.tags, dropping(_drop_tag), tree, run)
    if failures:
        return failures
    # Likewise, and an index has to go before what is in it.
    failures = _each_in_order(removal.manifests, dropping(_drop_manifest), tree, run)
    tagged: dict[str, list[DropManifest]] = {}
    for one in done:
        if isinstance(one, DropManifest) and one.tags:
            tagged.setdefault(one.repository, []).append(one)
    left = _each(tuple(tagged), lambda path: _drop_left_tags(tree, path, tagged[path]), tree, run)
    return (*failures, *left)


def _each_in_order(
    drops: Iterable[Drop], drop: Callable[[Drop], None], tree: RegistryTree, run: Run
) -> tuple[Failure, ...]:
    """`drop` everything: repositories side by side, what is in one of them in its order."""
    drops_of: dict[str, list[Drop]] = {}
    for one in drops:
        drops_of.setdefault(one.repository, []).append(one)
    found: list[Failure] = []

    def drop_all(path: str) -> None:
        for one in drops_of[path]:
            if run.stopped:
                return
            try:
                drop(one)
            except (ConflictError, RegistryError) as err:
                found.append(Failure(tree.name, str(one), err))
                if isinstance(one, DropManifest):
                    return  # what an index holds has to stay as long as it does
                if isinstance(err, RegistryError) and err.status in (None, 401, 403, 405):
                    return  # the next would only repeat it

    beyond = _each(tuple(drops_of), drop_all, tree, run)
    return (*beyond, *sorted(found, key=lambda failure: failure.item))


def _each(
    items: Collection[Item], work: Callable[[Item], None], tree: RegistryTree, run: Run
) -> tuple[Failure, ...]:
    failures = []
    with closing(for_each(items, work, run=run)) as outcomes:
        for item, outcome in outcomes:
            if isinstance(outcome, MirrorError):
                failures.append(Failure(tree.name, str(item), outcome))
    return tuple(sorted(failures, key=lambda failure: failure.item))


def _drop_tag(tree: RegistryTree, one: DropTag) -> None:
    found = tree.client.resolve(tree.locate(one.repository), one.tag)
    if found is None:
        return
    if found.digest != one.digest:
        raise ConflictError(
            f"it was to go when it named {one.digest}, and names {found.digest} now: somebody "
            "changed it meanwhile, so it stays; run this again if it is to go all the same"
        )
    drop_tag(tree, one.repository, one.tag)


def _drop_manifest(tree: RegistryTree, one: DropManifest) -> None:
    repository = tree.locate(one.repository)
    try:
        tree.client.delete_manifest(repository, one.digest)
    except RegistryNotFoundError:
        if tree.client.resolve(repository, one.digest) is not None:
            raise  # it was not gone: some proxies know no DELETE
    except RegistryError as err:
        if not one.tags or err.status not in (400, 409):
            raise
        # Google's registries refuse it as long as a tag names it.
        _drop_left_tags(tree, one.repository, [one])
        with suppress(RegistryNotFoundError):
            tree.client.delete_manifest(repository, one.digest)


def _drop_left_tags(tree: RegistryTree, path: str, manifests: Iterable[DropManifest]) -> None:
    """Delete tags that are there though their manifest was deleted.

    Crane's registry keeps them, with the manifest; distribution keeps them without it where a
    request failed before it came to the tags.
    """
    repository, listed = tree.locate(path), tree.listed_tags(path)
    for one in manifests:
        for tag in listed.intersection(one.tags):
            found = tree.client.resolve(repository, tag)
            if found is None:
                drop_tag(tree, path, tag)
            elif found.digest == one.digest:
                delete_tag(tree, path, tag)


# -- single tags -----------------------------------------------------------------------------------

TRIAL = make_artifact("application/vnd.deckhouse.mirror.probe.v1")
"""The artifact of our own on which `deletes_tags` tries what a registry does."""


def deletes_tags(tree: RegistryTree, tag: str) -> bool:
    """Whether the registry deletes a tag when asked to, and keeps the manifest that it named.

    Most registries that cannot refuse, but some would delete the manifest, with all its other
    tags. So it is tried on a manifest of our own, beside the statements, under `tag`. Where it
    cannot be deleted, `tag` goes on naming that manifest: pass one that is about to be set anyway.
    """
    client, repository, trial = tree.client, tree.locate(REPOSITORY), TRIAL.manifest
    put_artifact(client, repository, TRIAL, tag)
    try:
        with suppress(RegistryNotFoundError):  # gone, by a request whose answer was lost
            client.delete_tag(repository, tag)
        kept = client.resolve(repository, trial.digest) is not None
        gone = client.resolve(repository, tag) is None
    except UnreachableError:
        raise
    except RegistryError:
        return False
    finally:
        with suppress(RegistryError):  # a few bytes, where even that is not allowed
            client.delete_manifest(repository, trial.digest)
    return kept and gone


def remove_tags(
    tree: RegistryTree, tags: Iterable[PutTag], *, stage: TagStage = publication_stage, run: Run
) -> tuple[tuple[str, str], ...]:
    """Delete tags of a registry that `deletes_tags`, the last stage first.

    Returns the (repository, tag) of each that is gone, sorted; a warning names each other one.

    Raises:
        CancelledError: the run was stopped.
    """

    def drop(step: PutTag) -> None:
        delete_tag(tree, step.repository, step.tag)

    def stage_of(step: PutTag) -> int:
        return stage(step.repository, step.tag)

    gone: list[tuple[str, str]] = []
    for _, steps in groupby(sorted(tags, key=stage_of, reverse=True), stage_of):
        with closing(for_each(list(steps), drop, run=run)) as outcomes:
            for step, outcome in outcomes:
                if isinstance(outcome, MirrorError):
                    name = f"{step.repository or '/'}:{step.tag}"
                    run.on_event(Warned(f"{tree.name}: tag {name} could not be removed: {outcome}"))
                else:
                    gone.append((step.repository, step.tag))
    return tuple(sorted(gone))


def delete_tag(tree: RegistryTree, path: str, tag: str) -> None:
    """Delete a tag of a registry that `deletes_tags`. One that is gone counts as deleted."""
    with suppress(RegistryNotFoundError):
        tree.client.delete_tag(tree.locate(path), tag)


_ATTEMPTS = 3
"""How often a tag is set and deleted again if the registry deletes its manifest and keeps it."""


def drop_tag(tree: RegistryTree, path: str, tag: str) -> None:
    """Delete a tag by way of a manifest of our own: no other manifest goes with it."""
    repository = tree.locate(path)
    # Nothing else names it, so that deleting it deletes this tag alone.
    stand_in = make_artifact(
        "application/vnd.deckhouse.mirror.removed-tag.v1",
        annotations={"io.deckhouse.mirror.removed-tag": f"{path}:{tag}"},
    )
    for attempt in range(1, _ATTEMPTS + 1):
        put_artifact(tree.client, repository, stand_in, tag)
        try:
            tree.client.delete_manifest(repository, stand_in.manifest.digest)
        except RegistryNotFoundError:
            # As above: deleted by a request that then failed, or whose answer was lost.
            if attempt == _ATTEMPTS and tag in tree.listed_tags(path):
                raise
        else:
            return
