"""Prune: a registry rid of what no inventory that is to be kept names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirror.bundle.reader import read_inventory
from mirror.errors import ConflictError, PruneRefusedError, common_exit_code
from mirror.events import PhaseStarted
from mirror.operations.pull import tool_name
from mirror.operations.sites import Site
from mirror.release.discovery import discovery_images
from mirror.run import Run
from mirror.sync import Inventory, union
from mirror.sync.nodes import RepositoryContent
from mirror.sync.observation import Failure
from mirror.sync.publish import (
    Published,
    begin,
    check_unchanged,
    complete,
    generation_tag,
    generations,
    read_marks,
    read_standing,
    read_statement,
)
from mirror.sync.removal import DropManifest, DropTag, Removal, check_deletes, plan_removal, remove
from mirror.sync.statement import REPOSITORY, Statement
from mirror.sync.walk import walk


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What was removed, or would be. `freed` is the bytes of blobs that nothing needs any more.

    `generations` are those whose way back is gone; `published` is what the registry states now.
    """

    target: str
    dry_run: bool
    removal: Removal
    freed: int
    generations: tuple[int, ...]
    published: Published | None
    failures: tuple[Failure, ...]

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, else the code that all failures share, or 1."""
        return common_exit_code(failure.error for failure in self.failures)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "target": self.target,
            "dryRun": self.dry_run,
            "removed": self.removal.to_document(),
            "freedBytes": self.freed,
            "generations": list(self.generations),
            "statement": str(self.published.digest) if self.published else None,
            "generation": self.published.statement.generation if self.published else None,
            "failures": [failure.to_document() for failure in self.failures],
        }


def prune(
    site: Site,
    keep: Sequence[Path | int],
    *,
    dry_run: bool = False,
    run: Run | None = None,
) -> PruneReport:
    """Remove tags and manifests that nothing in `keep` names: bundles, inventories, generations.

    The scope is the repositories that the registry's statements or `keep` name, and nothing beside
    them. A tag that is kept keeps what it names now. The new, smaller statement is published before
    anything goes, and with what goes the statements that promised it: at no moment does the
    registry state more than it has. Space is freed by its own garbage collector afterwards.

    Raises:
        InputError: `keep` is empty, or names a generation that is not there.
        PruneRefusedError: a publication was interrupted, nothing would be left, or what is there
            cannot be read.
        ConflictError: somebody published something meanwhile; nothing was changed.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    site = site.within(run)
    client, locate = site.client, site.tree.locate
    run.on_event(PhaseStarted(f"looking at {site.name}"))
    standing = read_standing(client, locate)
    if standing.pending is not None:
        raise PruneRefusedError(
            f"{site.name}: nothing was pruned: the publication of generation "
            f"{standing.pending.statement.generation} was interrupted; push or sync again first"
        )
    history = {
        number: published
        for number in generations(client, locate)
        if (published := read_statement(client, locate, generation_tag(number)))
    }
    if standing.current is not None:
        history.setdefault(standing.current.statement.generation, standing.current)
    kept = union(_kept(one, history, site.name) for one in keep)
    stated = union(published.statement.inventory for _, published in sorted(history.items()))
    scope = frozenset({*stated.repositories, *kept.repositories})
    if not kept.repositories:
        raise PruneRefusedError(f"{site.name}: nothing was pruned: what is to be kept is empty")
    known = union([kept, stated])
    found = walk(site.source(), scope, known=known, run=run.quietly()).complete()
    if found.failures:
        raise PruneRefusedError(
            f"{site.name}: nothing was pruned: {len(found.failures)} of its items cannot be read, "
            f"the first being {found.failures[0].item}: {found.failures[0].error}"
        )
    there = found.held
    removal = plan_removal(there, kept, scope)
    rest = after(there, removal)
    if not rest.repositories and removal:
        raise PruneRefusedError(
            f"{site.name}: nothing was pruned: the registry has nothing of what is to be kept, so "
            "all of it would go; check --keep, and the registry's path"
        )
    doomed = {
        number: published
        for number, published in history.items()
        if published != standing.current and not _within(published.statement.inventory, rest)
    }
    published = standing.current
    failures: tuple[Failure, ...] = ()
    if removal and not dry_run:
        check_deletes(site.place(run=run))  # before a smaller state is published
        check_unchanged(client, locate, standing)
        if standing.current is not None:
            published = _state(site, standing.current, rest, standing.generation)
            if not _within(standing.current.statement.inventory, rest):
                doomed[standing.current.statement.generation] = standing.current
        marks = read_marks(client, locate)
        gone: list[DropTag | DropManifest] = []
        failures = _carry_out(site, removal, doomed, published, gone, run)
        removal = removal.only(gone)
        if read_marks(client, locate) != marks:
            failures += (Failure(site.name, "the registry as a whole", _overtaken(site)),)
    left, before = after(there, removal).blob_sizes(), there.blob_sizes()
    freed = sum(size for digest, size in before.items() if digest not in left)
    return PruneReport(
        site.name, dry_run, removal, freed, tuple(sorted(doomed)), published, failures
    )


def after(there: Inventory, removal: Removal) -> Inventory:
    """What is left of `there`, closed: blobs that only removed manifests need are not in it."""
    gone = {(one.repository, one.digest) for one in removal.manifests}
    tags = {(one.repository, one.tag) for one in removal.tags}
    contents = {}
    for path, content in there.repositories.items():
        manifests = {d: node for d, node in content.manifests.items() if (path, d) not in gone}
        content_left = RepositoryContent(
            {
                tag: digest
                for tag, digest in content.tags.items()
                if (path, tag) not in tags and digest in manifests
            },
            manifests,
            {blob.digest: blob.size for node in manifests.values() for blob in node.blobs},
        )
        if content_left:
            contents[path] = content_left
    return Inventory(contents)


def _kept(one: Path | int, history: dict[int, Published], name: str) -> Inventory:
    if isinstance(one, Path):
        found = read_inventory(one)
        # What a push of it would make, whatever is there by those names.
        return union([found, discovery_images(found).inventory()])
    if one not in history:
        held = ", ".join(map(str, sorted(history))) or "none"
        raise PruneRefusedError(
            f"{name}: nothing was pruned: it has no generation {one}; those it has: {held}"
        )
    return history[one].statement.inventory


def _within(stated: Inventory, rest: Inventory) -> bool:
    """Whether all manifests that a statement names are left, so that it can be gone back to."""
    return all(
        content.manifests.keys() <= rest.repository(path).manifests.keys()
        for path, content in stated.repositories.items()
    )


def _overtaken(site: Site) -> ConflictError:
    return ConflictError(
        f"{site.name}: another push, rollback or sync published something while this prune removed "
        "things that it may have counted on; run that one again, which brings what lacks, and "
        "`mirror status --blobs` to see that all is there"
    )


def _state(site: Site, current: Published, rest: Inventory, generation: int) -> Published:
    """Publish what will be left, before anything goes."""
    statement = Statement(rest, generation + 1, tool=tool_name())
    artifact = statement.artifact()
    if current.statement.inventory == rest:
        return current
    begin(site.client, site.tree.locate, artifact)
    complete(site.client, site.tree.locate, statement, artifact.manifest.digest)
    return Published(artifact.manifest.digest, statement)


def _carry_out(
    site: Site,
    removal: Removal,
    doomed: dict[int, Published],
    published: Published | None,
    gone: list[DropTag | DropManifest],
    run: Run,
) -> tuple[Failure, ...]:
    run.on_event(PhaseStarted("removing", len(removal.tags) + len(removal.manifests)))
    place = site.place(run=run)
    statements = Removal(
        manifests=tuple(
            DropManifest(REPOSITORY, one.digest, (generation_tag(number),))
            for number, one in sorted(doomed.items())
            if published is None or one.digest != published.digest
        )
    )
    failures = remove(statements, place, run=run)
    return failures or remove(removal, place, run=run, gone=gone)
