"""The leader held against its own statement, and healed from its replicas."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from mirror.errors import (
    IncompleteError,
    MirrorError,
    NotFoundError,
    RegistryError,
    UnreachableError,
)
from mirror.oci import Digest
from mirror.operations.leader import Facts, Leader
from mirror.operations.replicate import describe_damage
from mirror.operations.results import How, Outcome, ReplicaResult
from mirror.operations.trees import listed_repositories, usual_repositories
from mirror.run import Run
from mirror.sync import Finding, Inventory, Plan, make_plan, transfer
from mirror.sync.difference import lacking
from mirror.sync.failover import FailoverSource
from mirror.sync.healing import Healer, Mending, mended, without_manifests
from mirror.sync.observation import Depth, Failure, Item, Observation
from mirror.sync.observe import observe
from mirror.sync.publication_state import read_state
from mirror.sync.statement import REPOSITORY, Statement
from mirror.sync.tree import RegistryTree


class LeaderAudit:
    """Compares the leader with what it states. `run` once, in a thread of its own.

    With `deep`, content that is lost or damaged is taken from a replica: what goes by a digest is
    the same wherever it comes from. Tags are the leader's own decision and are only reported.
    """

    def __init__(
        self,
        leader: Leader,
        others: Sequence[RegistryTree],
        how: How,
        *,
        run: Run,
    ) -> None:
        self._leader, self._others, self._how = leader, others, how
        self._run = run
        self._place = leader.tree.target(run)
        self._started = time.monotonic()
        self._damaged: tuple[Finding, ...] = ()
        self._healed: tuple[Finding, ...] = ()
        self._failures: tuple[Failure, ...] = ()
        self._extras: tuple[str, ...] = ()
        self._untold: tuple[Failure, ...] = ()  # says nothing about what it states
        self._facts: Facts | None = None

    @property
    def tree(self) -> RegistryTree:
        """The leader's."""
        return self._leader.tree

    def carry_out(self) -> ReplicaResult:
        """Do it; what fails is in the result and is never raised."""
        try:
            self._facts = self._leader.facts()
            self._failures = self._audit(self._facts)
        except MirrorError as err:
            self._failures = (Failure(self.tree.name, "the leader as a whole", err),)
        finally:
            self._leader.judge((*self._failures, *self._as_failures()))
        return self.result()

    def _as_failures(self) -> tuple[Failure, ...]:
        return tuple(
            Failure(one.place, str(one.digest), NotFoundError(one.problem)) for one in self._damaged
        )

    def result(self) -> ReplicaResult:
        """What was found."""
        published = self._facts.published if self._facts else None
        failures = (*self._failures, *self._untold)
        outcome = Outcome.SYNCED if self._healed else Outcome.EQUAL
        if self._damaged:
            outcome = Outcome.DIFFERS
        return ReplicaResult(
            self.tree.name,
            Outcome.FAILED if failures else outcome,
            self._leader.digest,
            published.statement.generation if published else None,
            damaged=self._damaged,
            healed=self._healed,
            extras=self._extras,
            failures=failures,
            elapsed_s=time.monotonic() - self._started,
        )

    def _audit(self, facts: Facts) -> tuple[Failure, ...]:
        if facts.published is None:
            return facts.failures  # it was walked: there is no statement to hold it against
        depth = Depth.DEEP if self._how.deep else Depth.LISTED
        found = self._observe(facts, depth, also=self._repositories())
        self._extras = tuple(_unstated(facts, found))
        self._untold += found.unlisted_failures
        if not self._how.deep:
            return self._judged(facts, found)
        place, how = self._place, self._how
        damaged = found.all_damage()
        wanted = facts.with_statement()
        blobs = wanted.blob_sizes()
        broken = {d: error for d, error in damaged.items() if d not in blobs}
        plan = make_plan(wanted, without_manifests(found.held, broken))
        plan = replace(plan, tags=())
        if not damaged and not plan:
            return self._judged(facts, found)
        lost = [step.digest for step in plan.blobs]
        lost += [step.digest for wave in plan.manifests for step in wave]
        if how.dry_run or not self._others:
            self._damaged = (
                *describe_damage(place.name, damaged),
                *(Finding(place.name, f"{d} is missing", digest=d) for d in lost),
            )
            return () if how.dry_run else self._as_failures()
        failures = self._heal(facts, plan, damaged, broken)
        found = self._observe(facts, Depth.AUDIT)
        return (*failures, *self._judged(facts, found))

    def _heal(
        self,
        facts: Facts,
        plan: Plan,
        damaged: Mapping[Digest, MirrorError],
        broken: Mapping[Digest, MirrorError],
    ) -> tuple[Failure, ...]:
        """Replace what is damaged, and bring what is missing; `broken` are manifests."""
        place, wanted = self._place, facts.with_statement()
        source = FailoverSource(
            [one.source() for one in self._others], wanted, on_event=self._run.on_event
        )
        healer = Healer(place, source, self.tree.files, run=self._run)
        healed, failures = healer.heal_blobs(damaged, wanted)
        target = Mending(place, healer, broken)
        missing = [(step.into[0], step.digest) for step in plan.blobs]
        missing += [(step.repository, step.digest) for wave in plan.manifests for step in wave]
        try:
            transfer(
                plan,
                source,
                target,
                run=self._run,
            )
        except IncompleteError as err:
            failures += tuple(Failure(place.name, item, reason) for item, reason in err.failures)
        else:
            healed += tuple(
                mended(place.name, path, digest) for path, digest in missing if digest not in broken
            )
        self._healed = (*healed, *target.healed)
        return failures

    def _judged(self, facts: Facts, found: Observation) -> tuple[Failure, ...]:
        """What the leader states and does not hold."""
        rest = lacking(facts.inventory, found.held)
        coming = None
        if any(content.tags for content in rest.repositories.values()):
            newest = read_state(self.tree).newest
            if newest is not None and newest != facts.published:
                coming = newest.statement
        return _lost(rest, found, coming, self._place.name)

    def _repositories(self) -> frozenset[str]:
        """All below its root, as it lists them: another tool may have brought new ones.

        Where it does not list them, those that a release tree has by its nature.
        """
        listed: set[str] | RegistryError
        try:
            listed = listed_repositories(self.tree)
        except UnreachableError as err:  # by this request, which costs large registries much
            listed = err
        if not isinstance(listed, RegistryError):
            return frozenset(listed)
        try:
            return frozenset(usual_repositories(self.tree))
        except RegistryError as err:
            self._untold = (Failure(self._place.name, "its list of repositories", err),)
            return frozenset()

    def _observe(self, facts: Facts, depth: Depth, also: Iterable[str] = ()) -> Observation:
        wanted = facts.with_statement() if self._how.deep else facts.inventory
        return observe(self._place, wanted, depth, also=also, run=self._run)


def _unstated(facts: Facts, found: Observation) -> Iterator[str]:
    """Tags of the leader's tree that its statement does not have."""
    for path, tags in sorted(found.listed.items()):
        if path != REPOSITORY:
            for tag in sorted(tags - facts.inventory.repository(path).tags.keys()):
                yield f"tag {path or '/'}:{tag}"


def _lost(
    rest: Inventory, found: Observation, coming: Statement | None, name: str
) -> tuple[Failure, ...]:
    """What the leader states and does not hold, which is `rest`; `coming` is what it publishes."""
    failures = [Failure(name, str(item), error) for item, error in found.unclear.items()]
    unclear = {(item.repository, item.tag, item.digest) for item in found.unclear}
    for path, content in rest.repositories.items():
        there = found.held.repository(path).tags
        items = [
            *(Item(path, digest, tag) for tag, digest in content.tags.items()),
            *(Item(path, digest) for digest in content.manifests),
            *(Item(path, digest, is_blob=True) for digest in content.blobs),
        ]
        for item in items:
            if (path, item.tag, item.digest) in unclear:
                continue
            now = there.get(item.tag) if item.tag else None
            if now is None:
                told = (
                    "the leader states it and does not have it; sync with --deep takes content "
                    "back from the replicas, and a new push restores everything"
                )
            elif coming and coming.inventory.repository(path).tags.get(item.tag or "") == now:
                told = (
                    f"the leader states {item.digest} and the tag names {now} for the sake of "
                    f"generation {coming.generation}, whose publication is under way, was finished "
                    "just now or was interrupted: run this again when that push is over, and if "
                    "none runs, the push"
                )
            else:
                told = (
                    f"the leader states {item.digest} and the tag names {now}: somebody changed it "
                    "without stating it, so no replica follows; `mirror push` to the leader the "
                    "bundle that it is to have, which states it and sends only what lacks"
                )
            failures.append(Failure(name, str(item), NotFoundError(told)))
    return tuple(failures)
