"""The leader of a sync: what it states, read once and only when some replica needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from mirror.errors import (
    CancelledError,
    ConflictError,
    DeadlineError,
    MirrorError,
    NotFoundError,
    RegistryNotFoundError,
    StalledError,
)
from mirror.oci import Digest
from mirror.operations.trees import walk_tree
from mirror.run import Run
from mirror.sync import Inventory, InventoryBuilder, ManifestNode
from mirror.sync.artifact import Artifact
from mirror.sync.observation import Failure
from mirror.sync.publication_state import (
    LATEST,
    PublicationState,
    Published,
    read_artifact,
    read_state,
    read_statement,
)
from mirror.sync.statement import REPOSITORY, generation_of
from mirror.sync.tree import RegistryTree
from mirror.sync.workers import gather

Answer = TypeVar("Answer")


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
    """The registry that decides, and the statement that it has published. Thread-safe.

    `digest` and `generation` are the statement's; None where the leader states nothing.
    """

    def __init__(
        self,
        tree: RegistryTree,
        digest: Digest | None,
        generation: int | None,
        *,
        run: Run | None = None,
    ) -> None:
        self.tree, self.digest, self.generation = tree, digest, generation
        self._run = Run.of(run)
        self._lock = threading.Lock()
        self._facts: Facts | None = None
        self._audit: Future[tuple[Failure, ...]] = Future()

    @classmethod
    def ask(cls, tree: RegistryTree, *, run: Run | None = None) -> Leader:
        """Ask which statement `tree` has published; `facts` reads it when somebody needs it.

        One small request: the statement's layer may be large.
        """
        try:
            manifest = tree.client.manifest(tree.locate(REPOSITORY), LATEST)
        except RegistryNotFoundError:
            return cls(tree, None, None, run=run)
        return cls(tree, manifest.digest, generation_of(manifest), run=run)

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
        if not found.held.repositories:
            raise NotFoundError(
                f"the leader {tree.name} states no inventory and holds no image; push to it first, "
                "or name another leader with --from"
            )
        return Facts(found.held, failures=found.failures)


def _read_at(tree: RegistryTree, digest: Digest) -> Published:
    published = read_statement(tree, digest)
    if published is None:
        raise NotFoundError(f"{tree.name}: the statement {digest} is gone; run the command again")
    return published


def ask_at_once(
    trees: Sequence[RegistryTree],
    question: Callable[[RegistryTree], Answer],
    *,
    patience_s: float | None = None,
    run: Run,
) -> list[Answer | MirrorError]:
    """The answers to `question`, or why there is none, in the order of `trees`.

    All are asked at once, and none for longer than `patience_s` seconds.
    """

    def ask(tree: RegistryTree) -> tuple[Answer | MirrorError]:
        # In a tuple: to the workers an error that is returned is not an error.
        try:
            return (question(tree.within(run.with_deadline(patience_s))),)
        except DeadlineError as err:
            run.check()
            silent = StalledError(f"no answer within {patience_s:g} s", where=tree.name)
            silent.__cause__ = err
            return (silent,)
        except CancelledError:
            raise
        except MirrorError as err:
            return (err,)

    return [answer for (answer,) in gather(trees, ask, run=run.with_jobs(max(1, len(trees))))]


def choose_leader(
    trees: Sequence[RegistryTree], *, patience_s: float | None = None, run: Run | None = None
) -> tuple[RegistryTree, tuple[Failure, ...]]:
    """The tree that states the highest generation; of several, one that is publishing nothing.

    Clocks and dates of images do not count. What is on its way to a generation beyond that one, by
    a publication that is under way or was interrupted, is not to be turned back by who finds it so:
    such trees are in the failures, like those that could not be asked. All are asked at once, and
    whoever has not answered after `patience_s` seconds counts as unreachable.

    Raises:
        NotFoundError: none states an inventory that can be read.
        ConflictError: two state different inventories as the same generation.
    """
    failures: list[Failure] = []
    standings: list[tuple[PublicationState, RegistryTree]] = []
    stating: list[tuple[Published, bool, RegistryTree]] = []
    answers = ask_at_once(
        trees,
        lambda tree: read_state(tree),
        patience_s=patience_s,
        run=Run.of(run),
    )
    for tree, answer in zip(trees, answers, strict=True):
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
