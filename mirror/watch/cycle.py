"""One cycle over real registries: who leads, what a replica lacks of it, and what was done."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from mirror.errors import MirrorError, NotFoundError
from mirror.oci import Digest
from mirror.operations import Outcome, ReplicaResult, adopt, sync_replicas
from mirror.operations.audit_leader import LeaderAudit
from mirror.operations.leader import Leader, choose_leader
from mirror.operations.results import How
from mirror.run import Run
from mirror.sync import Inventory
from mirror.sync.publication import read_statement, statement_digest
from mirror.sync.statement import Published
from mirror.sync.survey import Failure, survey
from mirror.sync.tree import RegistryTree
from mirror.watch.pace import Depth
from mirror.watch.settings import AUTO
from mirror.watch.state import Look


class Replicator:
    """Looks after replicas; one thread per replica calls it (`daemon.Cycle`).

    `leader` is a name in `trees`, or `auto`: the registry that states the highest generation.
    """

    def __init__(
        self, trees: Mapping[str, RegistryTree], leader: str, *, prune: bool = False, jobs: int = 4
    ) -> None:
        self._trees, self._leader, self._prune, self._jobs = trees, leader, prune, jobs
        self._lock = threading.Lock()
        self._stated: Published | None = None  # under the lock: the statement that was read last

    def __call__(self, replica: str, depth: Depth, run: Run) -> Look:
        """Bring `replica` up to date.

        Raises:
            MirrorError: of the leader, or of all registries that could lead.
        """
        tree, run = self._trees[replica], run.quietly().with_jobs(self._jobs)
        unasked: tuple[Failure, ...] = ()
        if self._leader != AUTO:
            leader = self._trees[self._leader]
        else:
            if depth is Depth.STATEMENT and (equal := self._all_equal(tree, run)):
                return equal
            try:
                leader, unasked = choose_leader(list(self._trees.values()), run=run)
            except NotFoundError:
                return self._adopted(tree, depth, run)
        own = tuple(failure for failure in unasked if failure.place == tree.name)
        if own:  # it cannot be asked, or is on its way to something newer
            unasked = tuple(failure for failure in unasked if failure not in own)
            result = ReplicaResult(tree.name, Outcome.FAILED, failures=own)
        elif leader is tree:
            result = self._audited(tree, depth, run)
        else:
            report = sync_replicas(
                leader,
                [tree],
                audit=depth is Depth.AUDIT,
                deep=depth is Depth.DEEP,
                prune=self._prune and depth is not Depth.STATEMENT,
                audit_leader=self._prune,
                run=run,
            )
            (result,) = report.replicas
        return self._look(depth, leader, tree, result, unasked, run)

    # -- ways to look --------------------------------------------------------------------------

    def _all_equal(self, tree: RegistryTree, run: Run) -> Look | None:
        """The cheap answer where nobody leads by name: one request per registry, all alike.

        A peer that does not answer is told of. Nothing is known of it that could change this.
        """
        with self._lock:
            known = self._stated
        if known is None:
            return None
        unasked: list[Failure] = []
        for one in self._trees.values():
            try:
                if statement_digest(one) != known.digest:
                    return None
            except MirrorError as err:
                if one is tree or run.stopped:
                    return None
                unasked.append(Failure(one.name, "its statement", err))
        number, declared = known.statement.generation, count(known.statement.inventory)
        return Look(
            Depth.STATEMENT,
            complete=True,
            errors=told(unasked),
            leader=tree.name,
            generation=number,
            leader_generation=number,
            declared=declared,
            verified=declared,
        )

    def _audited(self, tree: RegistryTree, depth: Depth, run: Run) -> ReplicaResult:
        """The replica that leads, held against its own statement."""
        how = How(audit=depth is Depth.AUDIT, deep=depth is Depth.DEEP)
        head = Leader(tree, run=run)
        if not how.full:
            return ReplicaResult(tree.name, Outcome.EQUAL, head.digest, head.generation)
        others = [one for one in self._trees.values() if one is not tree]
        return LeaderAudit(head, others, how, run=run).carry_out()

    def _adopted(self, tree: RegistryTree, depth: Depth, run: Run) -> Look:
        """Nobody states anything: what other tools pushed is taken over where it is undisputed."""
        peers = [one for one in self._trees.values() if one is not tree]
        done = adopt(tree, peers, run=run)
        declared = count(done.inventory)
        return Look(
            depth,
            complete=not done.failures,
            errors=told(done.failures),
            declared=declared,
            verified=None if done.failures else declared,
            sent=done.sent,
        )

    # -- what it came to -----------------------------------------------------------------------

    def _look(
        self,
        depth: Depth,
        leader: RegistryTree,
        tree: RegistryTree,
        result: ReplicaResult,
        unasked: tuple[Failure, ...],
        run: Run,
    ) -> Look:
        published = self._published(leader)
        declared = count(published.statement.inventory) if published else None
        complete = not result.failures
        return Look(
            depth,
            complete=complete,
            errors=told((*unasked, *result.failures)),
            leader=leader.name,
            generation=result.generation,
            leader_generation=published.statement.generation if published else None,
            declared=declared,
            verified=declared if complete else self._verified(published, tree, run),
            sent=result.sent,
        )

    def _published(self, leader: RegistryTree) -> Published | None:
        """What the leader states; its layer, which may be large, is read once per statement."""
        digest = statement_digest(leader)
        with self._lock:
            if self._stated is not None and self._stated.digest == digest:
                return self._stated
        published = read_statement(leader, digest) if digest is not None else None
        if published is not None:
            with self._lock:
                self._stated = published
        return published

    def _verified(self, published: Published | None, tree: RegistryTree, run: Run) -> int | None:
        """How much of it an incomplete replica has, by asking; None if it does not answer."""
        if published is None:
            return None
        place = tree.target(run)
        try:
            return count(survey(published.statement.inventory, place, run=run).held)
        except MirrorError:
            if run.stopped:
                raise
            return None  # why it does not answer is among the result's failures


def count(inventory: Inventory) -> int:
    """How many distinct manifests and blobs there are."""
    digests: set[Digest] = set()
    for content in inventory.repositories.values():
        digests.update(content.manifests)
        digests.update(content.blobs)
    return len(digests)


def told(failures: Iterable[Failure]) -> tuple[str, ...]:
    """Failures as text."""
    return tuple(str(failure) for failure in failures)
