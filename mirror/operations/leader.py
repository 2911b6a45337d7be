"""The leader of a sync: what it states, read once and only when some replica needs it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

from mirror.errors import ConflictError, MirrorError, NotFoundError, RegistryNotFoundError
from mirror.oci import Digest
from mirror.operations.trees import walk_tree
from mirror.run import Run
from mirror.sync import Inventory, InventoryBuilder, ManifestNode
from mirror.sync.artifact import Artifact
from mirror.sync.publication import (
    LATEST,
    read_artifact,
    read_state,
    read_statement,
)
from mirror.sync.statement import REPOSITORY, PublicationState, Published, generation_of
from mirror.sync.survey import Failure
from mirror.sync.tree import RegistryTree
from mirror.sync.workers import gather


@dataclass(frozen=True, slots=True)
class Facts:
    """What the leader has. `published` None: it states nothing, and its tags were followed.

    `failures` are what could not be read then; `artifact` is the statement as it lies there.
    """

    inventory: Inventory
    published: Published | None = None
    artifact: Artifact | None = None
    failures: tuple[Failure, ...] = ()

    def with_statement(self) -> Inventory:
        """The inventory and the statement of it, which can be damaged like anything else."""
        if self.artifact is None:
            return self.inventory
        builder = InventoryBuilder()
        builder.add_inventory(self.inventory)
        builder.add_manifest(REPOSITORY, ManifestNode.of(self.artifact.manifest))
        return builder.build()


class Leader:
    """The registry that decides. Thread-safe; asked for its digest first, the rest if needed."""

    def __init__(self, tree: RegistryTree, *, run: Run | None = None) -> None:
        self.tree = tree
        self._run = Run.of(run)
        self._lock = threading.Lock()
        self._facts: Facts | None = None
        self._audit: Future[tuple[Failure, ...]] = Future()
        self.digest: Digest | None = None
        self.generation: int | None = None
        # One small request for both; the layer, which may be large, is left for `facts`.
        with suppress(RegistryNotFoundError):
            manifest = tree.client.manifest(tree.locate(REPOSITORY), LATEST)
            self.digest = manifest.digest
            self.generation = generation_of(manifest)

    @property
    def unread(self) -> tuple[Failure, ...]:
        """What of a leader that states nothing could not be read, as far as somebody asked."""
        return self._facts.failures if self._facts else ()

    def facts(self) -> Facts:
        """Its inventory: what it states, else what its tags lead to.

        Raises:
            NotFoundError: it states nothing and holds nothing.
            StatementError: what it states cannot be read.
        """
        with self._lock:
            if self._facts is None:
                self._facts = self._read()
            return self._facts

    def audited(self) -> tuple[Failure, ...]:
        """What it lacks of its own statement or cannot serve; waits for who looks (`judge`)."""
        return self._audit.result()

    def judge(self, failures: tuple[Failure, ...]) -> None:
        """Tell all who wait in `audited`. Once."""
        self._audit.set_result(failures)

    def _read(self) -> Facts:
        tree = self.tree
        if self.digest is not None:
            published = _read_at(tree, self.digest)
            self.generation = published.statement.generation
            return Facts(published.statement.inventory, published, read_artifact(tree, published))
        found = walk_tree(tree, run=self._run)
        if not found.inventory.repositories:
            raise NotFoundError(
                f"the leader {tree.name} states no inventory and holds no image; push to it first, "
                "or name another leader with --from"
            )
        return Facts(found.inventory, failures=found.failures)


def _read_at(tree: RegistryTree, digest: Digest) -> Published:
    published = read_statement(tree, digest)
    if published is None:
        raise NotFoundError(f"{tree.name}: the statement {digest} is gone; run the command again")
    return published


def choose_leader(
    trees: Sequence[RegistryTree], *, run: Run | None = None
) -> tuple[RegistryTree, tuple[Failure, ...]]:
    """The tree that states the highest generation; of several, one that is publishing nothing.

    Clocks and dates of images do not count. What is on its way to a generation beyond that one, by
    a publication that is under way or was interrupted, is not to be turned back by who finds it so:
    such trees are in the failures, like those that could not be asked.

    Raises:
        NotFoundError: none states an inventory that can be read.
        ConflictError: two state different inventories as the same generation.
    """
    run = Run.of(run)

    def standing(tree: RegistryTree) -> tuple[PublicationState | MirrorError]:
        try:
            return (read_state(tree.within(run)),)
        except MirrorError as err:
            return (err,)

    failures: list[Failure] = []
    standings: list[tuple[PublicationState, RegistryTree]] = []
    stating: list[tuple[Published, bool, RegistryTree]] = []
    answers = gather(trees, standing, run=run.with_jobs(max(1, len(trees))))
    for tree, (answer,) in zip(trees, answers, strict=True):
        if isinstance(answer, MirrorError):
            failures.append(Failure(tree.name, "its statement", answer))
            continue
        standings.append((answer, tree))
        if answer.current is not None and not answer.notices:
            stating.append((answer.current, answer.pending is not None, tree))
    if not stating:
        raise NotFoundError(
            f"none of {', '.join(tree.name for tree in trees)} states a complete inventory; "
            "push to one of them, or name the leader with --from"
        )
    highest = max(published.statement.generation for published, _, _ in stating)
    ahead = [one for one in stating if one[0].statement.generation == highest]
    if len({published.digest for published, _, _ in ahead}) > 1:
        names = ", ".join(tree.name for _, _, tree in ahead)
        raise ConflictError(
            f"{names} state different inventories as generation {highest}: they were pushed to "
            "apart from each other; name the one to follow with --from"
        )
    leader = min(ahead, key=lambda one: one[1])[2]
    failures += (
        Failure(tree.name, "its statement", _on_its_way(one.generation, leader, highest))
        for one, tree in standings
        if one.generation > highest
    )
    return leader, tuple(failures)


def _on_its_way(generation: int, leader: RegistryTree, highest: int) -> ConflictError:
    return ConflictError(
        f"the publication of generation {generation} is under way or was interrupted there, so it "
        f"is not turned back to generation {highest}, the highest that is complete ({leader.name} "
        "has it); wait for the push, or run it again; `mirror rollback` turns it back"
    )
