"""Bring one replica to what the leader has: compare, fill, repair, state and prune it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, partial
from typing import Any

from mirror.documents import document
from mirror.errors import IncompleteError, MirrorError, RegistryError, RegistryNotFoundError
from mirror.events import PhaseStarted
from mirror.layout import (
    INDEX_REPOSITORIES,
    component_of,
    publication_stage,
    stands_alone,
)
from mirror.oci import Digest
from mirror.operations.leader import Facts, Leader
from mirror.operations.prune import find_extras, refuse_to_prune, remove_extras
from mirror.operations.trust import check_downgrade, refuse_older
from mirror.run import Run
from mirror.sync import Finding, Inventory, InventoryBuilder, make_plan, union
from mirror.sync.content import PerItemErrors
from mirror.sync.failover import FailoverSource
from mirror.sync.observation import Depth, Failure, Observation, speaks_of_damage
from mirror.sync.observe import observe
from mirror.sync.plan import PutManifest, missing_content
from mirror.sync.publication import Goal, Publication, retract
from mirror.sync.publication_state import (
    PENDING,
    PublicationState,
    kept_statements,
    read_state,
    statement_digest,
)
from mirror.sync.repair import RepairingTarget, describe_damage, without_manifests
from mirror.sync.transfer import Independence, Interim
from mirror.sync.tree import RegistryTree


class Outcome(StrEnum):
    """How a replica stands at the end."""

    EQUAL = "equal"  # it was as it should be
    SYNCED = "synced"  # it is now
    DIFFERS = "differs"  # a dry run found something to do
    FAILED = "failed"  # it is not; the failures say why


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """What a sync does besides carrying what is new."""

    audit: bool = False
    deep: bool = False
    prune: bool = False
    dry_run: bool = False

    @property
    def full(self) -> bool:
        """Whether more is asked for than comparing what registries state."""
        return self.audit or self.deep or self.prune


@dataclass(frozen=True, slots=True)
class ReplicaResult:
    """What was found at one replica and done there; counts are of what moved, `sent` in bytes.

    `statement` and `generation` are what it states at the end; None where it states nothing.
    `extras` are tags and manifests that the leader does not have, and that are still there.
    `damaged` is what a dry run found and would replace.
    """

    name: str
    outcome: Outcome
    statement: Digest | None = None
    generation: int | None = None
    blobs: int = 0
    sent: int = 0
    manifests: int = 0
    tags: int = 0
    damaged: tuple[Finding, ...] = ()
    repaired: tuple[Finding, ...] = ()
    extras: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    elapsed_s: float = 0.0

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            **document(self, "replica=name", "outcome", "statement", "generation"),
            "sent": document(self, "blobs", "bytes=sent", "manifests", "tags"),
            **document(self, "damaged", "repaired", "extras", "removed", "failures"),
            "elapsedSeconds": round(self.elapsed_s, 3),
        }


class RegistryTask(ABC):
    """What a sync does at one registry, and what came of it. Each has a thread of its own.

    `others` are registries that may have what it needs, in their order.
    """

    what = "the replica as a whole"

    def __init__(
        self,
        tree: RegistryTree,
        leader: Leader,
        others: Sequence[RegistryTree],
        options: SyncOptions,
        *,
        run: Run,
    ) -> None:
        self._tree, self._leader, self._others, self._options = tree, leader, others, options
        self._run, self._place = run, RepairingTarget(tree, run=run)
        self._result = ReplicaResult(tree.name, Outcome.EQUAL)
        self._started = time.monotonic()

    def carry_out(self) -> ReplicaResult:
        """Do all of it, once. What fails is in the result and is never raised."""
        try:
            self._carry_out()
        except MirrorError as err:
            self._fail(self.what, err)
        self._note(elapsed_s=time.monotonic() - self._started)
        if self._result.failures:
            self._note(outcome=Outcome.FAILED)
        return self._result

    @abstractmethod
    def _carry_out(self) -> None:
        """Do the work; a MirrorError that leaves it is a failure of the registry as a whole."""

    def _note(self, **changes: Any) -> None:
        self._result = replace(self._result, **changes)

    def _add(self, **more: Iterable[Any]) -> None:
        """Add items to fields of the result."""
        self._note(**{name: (*getattr(self._result, name), *new) for name, new in more.items()})

    def _fail(self, item: str, error: MirrorError) -> None:
        if isinstance(error, IncompleteError):
            for part, reason in error.failures:
                self._fail(part, reason)
        else:
            self._add(failures=[Failure(self._tree.name, item, error)])

    @cached_property
    def _facts(self) -> Facts:
        return self._leader.facts()

    @cached_property
    def _wanted(self) -> Inventory:
        return self._facts.with_statement() if self._options.deep else self._facts.inventory

    @cached_property
    def _copies(self) -> FailoverSource:
        """The other registries as one source, which remembers who failed."""
        head = self._leader
        places = [
            head.source.within(self._run) if one.name == head.tree.name else one.source()
            for one in self._others
        ]
        return FailoverSource(places, self._wanted, on_event=self._run.on_event)

    def _observe(self, wanted: Inventory, depth: Depth, also: Iterable[str] = ()) -> Observation:
        return observe(self._place, wanted, depth, also=also, run=self._run)

    def _repair_blobs(self, damaged: Mapping[Digest, MirrorError]) -> bool:
        """Replace damaged blobs and note which manifests are; whether all could be replaced."""
        blobs = self._wanted.blob_sizes()
        # Manifests follow when all blobs are there: they count as absent, so a plan puts them.
        self._place.damaged = {d: error for d, error in damaged.items() if d not in blobs}
        repaired, failures = self._place.repair_blobs(damaged, self._wanted, self._copies)
        self._note(outcome=Outcome.SYNCED)
        self._add(repaired=repaired, failures=failures)
        return not failures


class Replication(RegistryTask):
    """Brings one replica to what the leader has, which is the first of `others`."""

    _unrepaired = False

    def _carry_out(self) -> None:
        stated = statement_digest(self._tree)
        self._note(statement=stated)
        alike = stated is not None and stated == self._leader.digest and not self._options.full
        # Tags may have turned to what an interrupted publication announced.
        if alike and statement_digest(self._tree, PENDING) in (None, stated):
            if self._tree.keys.trusted:
                _ = self._facts  # whose signature is checked
            self._note(generation=self._leader.generation)
            return  # both state the same, so the replica holds all that the leader does
        facts, name = self._facts, self._tree.name
        standing = read_state(self._tree)
        if standing.current is not None:
            self._note(generation=standing.current.statement.generation)
            refuse_older(self._leader.tree, facts.published, self._tree, standing.current)
        if not (
            self._tree.keys.trusted or (facts.published and facts.published.statement.restores)
        ):
            what, wanted = f"what {self._leader.tree.name} states", facts.inventory
            check_downgrade(self._tree, standing, Inventory(), wanted, run=self._run, what=what)
        known = self._known(standing)
        trusted = not (self._options.full or standing.pending or standing.notices)
        if trusted and standing.current is not None and facts.published is not None:
            self._run.on_event(PhaseStarted(f"{name}: comparing what is stated"))
            # The statement is believed, so only the difference is asked about.
            rest = missing_content(facts.inventory, known)
            held = union([known, self._observe(rest, Depth.LISTED).held])
            if self._carry(standing, held, unclear=frozenset(), quick=True):
                self._add(
                    extras=(
                        f"tag {path or '/'}:{tag}"
                        for path, content in sorted(known.repositories.items())
                        for tag in sorted(content.tags)
                        if tag not in facts.inventory.repository(path).tags
                    )
                )
                return
        self._run.on_event(PhaseStarted(f"{name}: comparing by digest"))
        depth = Depth.DEEP if self._options.deep else Depth.LISTED
        if not (known.repositories or self._options.full):
            depth = Depth.PROBE  # a new replica: a few blobs tell of an interrupted sync
        found = self._observe(self._wanted, depth, known.repositories)
        held = found.held
        if self._options.deep:
            held, found = self._repair_damage(found)
        self._add(failures=found.failures)
        unclear = frozenset(item.repository for item in found.unclear)
        self._carry(standing, held, unclear=unclear, quick=False)
        self._retract(standing, held)
        self._add(failures=found.unlisted_failures)
        self._extras(known, found)

    def _known(self, standing: PublicationState) -> Inventory:
        """What the replica states, and what it ever stated if it is pruned.

        Nothing else tells of manifests that no tag names.
        """

        def stated() -> Iterator[Inventory]:
            if self._options.prune:
                for _, published in kept_statements(self._tree):  # one in memory at a time
                    yield published.statement.inventory
            for newest in (standing.pending, standing.current):
                if newest is not None:
                    yield newest.statement.inventory

        return union(stated())

    def _repair_damage(self, found: Observation) -> tuple[Inventory, Observation]:
        """Replace what the look found damaged; return what is held and what stays unclear."""
        damaged = found.all_damage()
        if not damaged:
            return found.held, found
        if self._options.dry_run:
            self._note(outcome=Outcome.DIFFERS)
            self._add(damaged=describe_damage(self._tree.name, damaged))
            return found.held, replace(found, unclear={})
        self._unrepaired = not self._repair_blobs(damaged)
        blobs = self._wanted.blob_sizes()
        unclear = {i: error for i, error in found.unclear.items() if not speaks_of_damage(error)}
        held = InventoryBuilder()
        held.add_inventory(without_manifests(found.held, self._place.damaged))
        for item, error in found.unclear.items():
            if item.is_blob and item.digest is not None and speaks_of_damage(error):
                held.add_blob(item.repository, item.digest, blobs[item.digest])
        return held.build(), replace(found, unclear=unclear)

    def _carry(
        self, standing: PublicationState, held: Inventory, *, unclear: frozenset[str], quick: bool
    ) -> bool:
        """Carry what is missing and state it; False if statements misled a `quick` one.

        It carries nothing into `unclear` repositories: a refused answer does not mean absence.
        """
        facts = self._facts
        wanted = self._wanted.filtered(lambda path: path not in unclear)
        plan = make_plan(wanted, held, stage=publication_stage)
        if facts.failures:
            # Tags that lead to versions wait until every version could be read.
            first = (
                one for one in plan.tags if not publication_stage(one[0].repository, one[0].tag)
            )
            plan = replace(plan, tags=tuple(first))
        if self._unrepaired:
            plan = replace(plan, tags=())
        plan, missing = self._leader.trust.confirmed(plan)
        if missing and quick:
            return False  # what else is gone?
        for item, problem in missing:
            self._fail(item, problem)
        stale = facts.published is not None and (
            standing.pending is not None
            or standing.current is None
            or standing.current.digest != facts.published.digest
        )
        if self._options.dry_run:
            if plan or stale:
                self._note(outcome=Outcome.DIFFERS)
            counts = {"manifests": plan.manifest_count, "tags": plan.tag_count}
            self._note(blobs=len(plan.blobs), sent=plan.size, **counts)
            return True
        if not plan and not stale:
            return True
        goal = None
        doubtful = unclear or self._result.failures
        if facts.published and facts.artifact and (stale or plan.tags) and not doubtful:
            goal = Goal(facts.published.statement, facts.artifact)

        def before_tags(interim: Interim) -> None:
            if quick and any(_misled(reason) for _, reason in interim.failures):
                raise IncompleteError("some of the stated content is missing", interim.failures)
            self._confirm(interim.manifests)

        errors = PerItemErrors(self._tree.client.ping, self._run)
        try:
            trust = self._leader.trust
            no_exchange = partial(trust.refuse_exchange, facts.published, facts.pending, standing)
            publication = Publication(
                self._tree, standing, goal, retracts=True, announced=no_exchange
            )
            report = publication.carry_out(
                plan,
                self._copies,
                self._place,
                new_tags={} if self._place.damaged else publication.new_tags(plan, held),
                independence=Independence(wanted, component_of, _awaited, errors, unclear),
                before_tags=before_tags,
                run=self._run,
            )
        except IncompleteError as err:
            if quick and any(_misled(reason) for _, reason in err.failures):
                return False  # something that was stated is gone, so ask about everything
            self._fail("", err)
            return True
        finally:
            self._add(repaired=self._place.repaired)
        done = report.done
        for item, reason in done.failures:
            self._fail(item, reason)
        counts = {"blobs": done.blobs, "sent": done.sent, "manifests": done.manifests}
        self._note(outcome=Outcome.SYNCED, tags=done.tags, **counts)
        if report.retracted:
            self._note(statement=None, generation=None)
        elif report.stated is not None:
            stated = report.stated
            self._note(statement=stated.digest, generation=stated.statement.generation)
        return True

    def _retract(self, standing: PublicationState, held: Inventory) -> None:
        """Remove a statement that proved false and could not be made true.

        Otherwise this replica would count as complete, and the next sync would believe it.
        """
        current, facts = standing.current, self._facts
        if current is None or self._options.dry_run:
            return
        if self._result.statement != current.digest:
            return  # it states something newer by now
        if facts.published is not None and not self._result.failures:
            return
        broken = self._unrepaired or any(
            content.manifests.keys() & wanted.manifests.keys() - there.manifests.keys()
            or content.blobs.keys() & wanted.blobs.keys() - there.blobs.keys()
            for path, content in current.statement.inventory.repositories.items()
            for wanted, there in [(facts.inventory.repository(path), held.repository(path))]
        )
        if broken and retract(self._tree, standing, self._run):
            self._note(statement=None, generation=None)

    def _confirm(self, steps: Sequence[PutManifest]) -> None:
        """Check that every manifest that was put is there; a cache may have swallowed it."""
        client, locate = self._tree.client, self._tree.locate
        answers = PerItemErrors(client.ping, self._run).ask_all(
            steps, lambda step: client.resolve(locate(step.repository), step.digest)
        )
        failures = []
        for step, answer in zip(steps, answers, strict=True):
            path, digest = step.repository, step.digest
            if answer is None:
                answer = RegistryNotFoundError(
                    f"{self._tree.name}: manifest {digest} was accepted and is not there",
                    where=f"HEAD {path}",
                )
            if isinstance(answer, MirrorError):
                try:
                    manifest = self._copies.manifest(path, digest)
                    self._place.repair_manifest(path, manifest, answer)
                except MirrorError as err:
                    failures.append((f"manifest {path}@{digest}", err))
        if failures:
            raise IncompleteError(
                f"{len(failures)} manifests do not stay in {self._tree.name}", failures
            )

    def _extras(self, known: Inventory, found: Observation) -> None:
        """Find what the leader does not have, and remove it if that was asked for."""
        options, facts = self._options, self._facts
        removal, unread = find_extras(self._tree, facts.inventory, known, found, self._run)
        items = removal.items
        if not options.prune:
            self._add(extras=items)
            return
        incomplete = bool(self._result.failures)
        refuse_to_prune(self._tree, self._leader, removal, incomplete=incomplete, run=self._run)
        self._add(failures=unread)
        if removal:
            self._note(outcome=Outcome.DIFFERS if options.dry_run else Outcome.SYNCED)
        if options.dry_run or facts.published is None:
            self._add(extras=items)
            return
        current = facts.published.digest
        gone, failures = remove_extras(self._tree, removal, current, self._run)
        removed = gone.items
        left = [one for one in items if one not in set(removed)]
        self._add(failures=failures, removed=removed, extras=left)


def _awaited(path: str, tag: str) -> tuple[str, str] | None:
    """The component that must be complete before a tag may turn; None for the tag of an image."""
    if path in INDEX_REPOSITORIES:
        return component_of(f"{path}/{tag}")
    return None if stands_alone(path, tag) else component_of(path)


def _misled(error: MirrorError) -> bool:
    """Whether a registry missed something that a manifest needs."""
    unknown = {"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"}
    return isinstance(error, RegistryError) and not unknown.isdisjoint(error.codes)
