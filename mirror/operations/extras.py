"""Extras: what a replica has and its leader has not, found and, if that was asked for, removed."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.errors import PruneRefusedError
from mirror.oci import Digest
from mirror.operations.leader import Leader
from mirror.run import Run
from mirror.sync import Inventory, union
from mirror.sync.difference import lacking, tags_of, tags_only
from mirror.sync.observation import Failure, Observation
from mirror.sync.removal import DropManifest, DropTag, Removal, check_deletes, plan_removal, remove
from mirror.sync.statement import REPOSITORY
from mirror.sync.tree import RegistryTree
from mirror.sync.walk import walk


@dataclass(frozen=True, slots=True)
class Extras:
    """What would have to go. `unread` are things that may be extras too and could not be read."""

    removal: Removal
    unread: tuple[Failure, ...] = ()

    @property
    def items(self) -> list[str]:
        """Each of them as text."""
        return self.removal.items


def find_extras(
    tree: RegistryTree,
    wanted: Inventory,
    known: Inventory,
    found: Observation,
    run: Run,
) -> Extras:
    """What the replica has beyond `wanted`, which it has by now.

    `known` is what it stated, which tells of manifests that no tag leads to.
    """
    listed = {
        path: tags - wanted.repository(path).tags.keys()
        for path, tags in found.listed.items()
        if path != REPOSITORY
    }
    scope = frozenset({*wanted.repositories, *known.repositories})
    beyond = walk(
        tree.source(),
        scope,
        known=lacking(known, wanted),
        only=listed,
        run=run.quietly(),
    ).complete()
    # By now the tags that the leader has too name what they name there.
    there = union([found.held, beyond.held, tags_only(tags_of(wanted))])
    return Extras(plan_removal(there, wanted, scope), beyond.failures)


def refuse_to_prune(tree: RegistryTree, leader: Leader, *, incomplete: bool) -> None:
    """Check that nothing stands against a prune: no doubt about either registry.

    Raises:
        PruneRefusedError: the leader states nothing, or less is there than it states, or the
            replica is `incomplete`.
    """
    name, head = tree.name, leader.tree.name
    if leader.digest is None:
        raise PruneRefusedError(
            f"{name}: nothing was pruned: the leader {head} states no inventory, so what it lacks "
            "may be its loss; push to it first"
        )
    if leader.audited():
        raise PruneRefusedError(
            f"{name}: nothing was pruned: the leader {head} does not hold all that it states; "
            "mend that first"
        )
    if incomplete:
        raise PruneRefusedError(
            f"{name}: nothing was pruned: this replica is not complete; mend that first"
        )


def remove_extras(
    tree: RegistryTree,
    removal: Removal,
    current: Digest,
    run: Run,
) -> tuple[Removal, tuple[Failure, ...]]:
    """Remove them, and then all statements but `current`; returns what is gone, and what could
    not be removed.

    Raises:
        PruneRefusedError: the registry deletes nothing.
    """
    if not removal:
        return removal, ()
    check_deletes(tree)
    former = _statements_but(tree, current, run)
    gone: list[DropTag | DropManifest] = []
    failures = remove(removal, tree, gone=gone, run=run)
    if not failures:
        # They promise a way back to what has just gone.
        failures = remove(former, tree, run=run)
    return removal.only(gone), failures


def _statements_but(tree: RegistryTree, current: Digest, run: Run) -> Removal:
    found = walk(tree.source(), [REPOSITORY], run=run.quietly()).complete()
    tags: dict[Digest, list[str]] = {}
    for tag, digest in found.held.repository(REPOSITORY).tags.items():
        if digest != current:
            tags.setdefault(digest, []).append(tag)
    return Removal(
        manifests=tuple(
            DropManifest(REPOSITORY, digest, tuple(names)) for digest, names in tags.items()
        )
    )
