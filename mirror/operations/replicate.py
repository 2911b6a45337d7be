"""Bring one replica to what the leader has: compare, fill, repair, state and prune it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from mirror.documents import document
from mirror.errors import IncompleteError, MirrorError, RegistryError, RegistryNotFoundError
from mirror.events import PhaseStarted
from mirror.layout import (
    INDEX_REPOSITORIES,
    INSTALL,
    INSTALL_STANDALONE,
    component_of,
    publication_stage,
)
from mirror.oci import Digest
from mirror.operations.leader import Facts, Leader
from mirror.operations.prune import find_extras, refuse_to_prune, remove_extras
from mirror.run import PerItemErrors, Run
from mirror.sync import Finding, Inventory, InventoryBuilder, make_plan, union
from mirror.sync.failover import FailoverSource
from mirror.sync.observation import Depth, Failure, Observation, speaks_of_damage
from mirror.sync.observe import observe
from mirror.sync.plan import PutManifest, PutTag, lacking
from mirror.sync.publication import Goal, Publication, retract
from mirror.sync.publication_state import (
    PublicationState,
    kept_statements,
    read_state,
    statement_digest,
)
from mirror.sync.repair import Repairer, RepairingTarget, describe_damage, without_manifests
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
    healed: tuple[Finding, ...] = ()
    extras: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    elapsed_s: float = 0.0

    def adding(self, **more: Iterable[Any]) -> ReplicaResult:
        """The same with more items in the named fields."""
        longer: dict[str, Any] = {
            name: (*getattr(self, name), *items) for name, items in more.items()
        }
        return replace(self, **longer)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            **document(self, "replica=name", "outcome", "statement", "generation"),
            "sent": document(self, "blobs", "bytes=sent", "manifests", "tags"),
            **document(self, "damaged", "healed", "extras", "removed", "failures"),
            "elapsedSeconds": round(self.elapsed_s, 3),
        }


class Replication:
    """Brings one replica to what the leader has. `carry_out` once, in a thread of its own."""

    def __init__(
        self,
        tree: RegistryTree,
        leader: Leader,
        others: Sequence[RegistryTree],
        options: SyncOptions,
        *,
        run: Run,
    ) -> None:
        self.tree, self._leader, self._others, self._options = tree, leader, others, options
        self._run = run
        self._place = self.tree.target(run)
        self._result = ReplicaResult(tree.name, Outcome.EQUAL)
        self._unrepaired = False
        self._source: FailoverSource | None = None
        self._damaged: dict[Digest, MirrorError] = {}
        self._started = time.monotonic()

    def carry_out(self) -> ReplicaResult:
        """Do all of it. What fails is in the result and is never raised."""
        try:
            self._carry_out()
        except MirrorError as err:
            self._fail("the replica as a whole", err)
        result = replace(self._result, elapsed_s=time.monotonic() - self._started)
        return replace(result, outcome=Outcome.FAILED) if result.failures else result

    def _note(self, **changes: Any) -> None:
        self._result = replace(self._result, **changes)

    def _add(self, **more: Iterable[Any]) -> None:
        self._result = self._result.adding(**more)

    # -- the steps -----------------------------------------------------------------------------

    def _carry_out(self) -> None:
        stated = statement_digest(self.tree)
        self._note(statement=stated)
        if stated is not None and stated == self._leader.digest and not self._options.full:
            self._note(generation=self._leader.generation)
            return  # both state the same, so the replica holds all that the leader does
        facts = self._leader.facts()
        standing = read_state(self.tree)
        if standing.current is not None:
            self._note(generation=standing.current.statement.generation)
        known = self._known(standing)
        trusted = not (self._options.full or standing.pending or standing.notices)
        if trusted and standing.current is not None and facts.published is not None:
            self._run.on_event(PhaseStarted(f"{self.tree.name}: comparing what is stated"))
            # The statement is believed, so only the difference is asked about.
            rest = lacking(facts.inventory, known)
            held = union([known, observe(self._place, rest, Depth.LISTED, run=self._run).held])
            if self._carry(facts, standing, held, unclear=frozenset(), quick=True):
                self._add(
                    extras=(
                        f"tag {path or '/'}:{tag}"
                        for path, content in sorted(known.repositories.items())
                        for tag in sorted(content.tags)
                        if tag not in facts.inventory.repository(path).tags
                    )
                )
                return
        self._run.on_event(PhaseStarted(f"{self.tree.name}: comparing by digest"))
        depth = Depth.DEEP if self._options.deep else Depth.LISTED
        found = observe(
            self._place, self._wanted(facts), depth, also=known.repositories, run=self._run
        )
        held = found.held
        if self._options.deep:
            held, found = self._repair_damage(facts, found)
        for item, error in found.unclear.items():
            self._fail(str(item), error)
        unclear = frozenset(item.repository for item in found.unclear)
        self._carry(facts, standing, held, unclear=unclear, quick=False)
        self._retract(standing, facts, held)
        self._add(failures=found.unlisted_failures)
        self._extras(facts, known, found)

    def _known(self, standing: PublicationState) -> Inventory:
        """What the replica states, and what it ever stated if it is pruned.

        Nothing else tells of manifests that no tag names.
        """

        def stated() -> Iterator[Inventory]:
            if self._options.prune:
                for _, published in kept_statements(self.tree):  # one in memory at a time
                    yield published.statement.inventory
            for newest in (standing.pending, standing.current):
                if newest is not None:
                    yield newest.statement.inventory

        return union(stated())

    def _wanted(self, facts: Facts) -> Inventory:
        return facts.with_statement() if self._options.deep else facts.inventory

    def _repair_damage(self, facts: Facts, found: Observation) -> tuple[Inventory, Observation]:
        """Replace what the look found damaged; return what is held and what stays unclear."""
        damaged = found.all_damage()
        if not damaged:
            return found.held, found
        if self._options.dry_run:
            self._note(outcome=Outcome.DIFFERS)
            self._add(damaged=describe_damage(self.tree.name, damaged))
            return found.held, replace(found, unclear={})
        wanted = self._wanted(facts)
        blobs = wanted.blob_sizes()
        # Manifests follow when all blobs are there: they count as absent, so the plan puts them.
        self._damaged = {d: error for d, error in damaged.items() if d not in blobs}
        repairer = self._repairer(facts)
        healed, failures = repairer.repair_blobs(damaged, wanted)
        self._note(outcome=Outcome.SYNCED)
        self._add(healed=healed, failures=failures)
        self._unrepaired = bool(failures)
        unclear = {i: error for i, error in found.unclear.items() if not speaks_of_damage(error)}
        held = InventoryBuilder()
        held.add_inventory(without_manifests(found.held, self._damaged))
        for item, error in found.unclear.items():
            if item.is_blob and item.digest is not None and speaks_of_damage(error):
                held.add_blob(item.repository, item.digest, blobs[item.digest])
        return held.build(), replace(found, unclear=unclear)

    def _repairer(self, facts: Facts) -> Repairer:
        return Repairer(self._place, self._copies(facts), self.tree.storage, run=self._run)

    def _copies(self, facts: Facts) -> FailoverSource:
        """The leader and then the other replicas, as one source that remembers who failed."""
        if self._source is None:
            leader = self._leader.tree.within(self._run)
            self._source = FailoverSource(
                [one.source() for one in (leader, *self._others)],
                self._wanted(facts),
                on_event=self._run.on_event,
            )
        return self._source

    def _carry(
        self,
        facts: Facts,
        standing: PublicationState,
        held: Inventory,
        *,
        unclear: frozenset[str],
        quick: bool,
    ) -> bool:
        """Carry what is missing and state it; False if statements misled a `quick` one.

        Nothing is carried into `unclear` repositories: a refusal is no absence.
        """
        wanted = self._wanted(facts).filtered(lambda path: path not in unclear)
        plan = make_plan(wanted, held, stage=publication_stage)
        if facts.failures:
            # Tags that lead to versions wait until every version could be read.
            images = [
                tags
                for tags in plan.tags
                if publication_stage(tags[0].repository, tags[0].tag) == 0
            ]
            plan = replace(plan, tags=tuple(images))
        if self._unrepaired:
            plan = replace(plan, tags=())
        stale = facts.published is not None and (
            standing.pending is not None
            or standing.current is None
            or standing.current.digest != facts.published.digest
        )
        if self._options.dry_run:
            if plan or stale:
                self._note(outcome=Outcome.DIFFERS)
            self._note(
                blobs=len(plan.blobs),
                sent=plan.size,
                manifests=plan.manifest_count,
                tags=plan.tag_count,
            )
            return True
        if not plan and not stale:
            return True
        goal = None
        doubtful = unclear or self._result.failures
        if facts.published and facts.artifact and (stale or plan.tags) and not doubtful:
            goal = Goal(facts.published.statement, facts.artifact)

        def before_tags(interim: Interim) -> None:
            if quick and any(_misled(reason) for _, reason in interim.failures):
                raise IncompleteError("what is stated is not all there", interim.failures)
            self._confirm(interim.manifests, facts)

        errors = PerItemErrors(self.tree.client.ping, self._run)
        repairing = RepairingTarget(self._place, self._repairer(facts), self._damaged)
        try:
            report = Publication(self.tree, standing, goal, retracts=True).carry_out(
                plan,
                self._copies(facts),
                repairing if self._damaged else self._place,
                independence=Independence(
                    wanted, component_of, _awaited, errors, unclear, before_tags
                ),
                run=self._run,
            )
        except IncompleteError as err:
            if quick and any(_misled(reason) for _, reason in err.failures):
                return False  # something that was stated is gone, so ask about everything
            for item, reason in err.failures:
                self._fail(item, reason)
            return True
        finally:
            self._add(healed=repairing.healed)
        done = report.done
        for item, reason in done.failures:
            self._fail(item, reason)
        self._note(
            outcome=Outcome.SYNCED,
            blobs=done.blobs,
            sent=done.sent,
            manifests=done.manifests,
            tags=done.tags,
        )
        if report.retracted:
            self._note(statement=None, generation=None)
        elif report.stated is not None:
            stated = report.stated
            self._note(statement=stated.digest, generation=stated.statement.generation)
        return True

    def _retract(self, standing: PublicationState, facts: Facts, held: Inventory) -> None:
        """Remove a statement that proved false and could not be made true.

        Otherwise this replica would count as complete, and the next sync would believe it.
        """
        current = standing.current
        if current is None or self._options.dry_run:
            return
        stated = current.statement.inventory
        if self._result.statement != current.digest:
            return  # it states something newer by now
        if facts.published is not None and not self._result.failures:
            return
        broken = self._unrepaired or any(
            content.manifests.keys() & wanted.manifests.keys() - there.manifests.keys()
            or content.blobs.keys() & wanted.blobs.keys() - there.blobs.keys()
            for path, content in stated.repositories.items()
            for wanted, there in [(facts.inventory.repository(path), held.repository(path))]
        )
        if broken and retract(self.tree, standing, self._run):
            self._note(statement=None, generation=None)

    def _confirm(self, steps: Sequence[PutManifest], facts: Facts) -> None:
        """Check that every manifest that was put is there; a cache may have swallowed it.

        Raises:
            IncompleteError: one is not, and cannot be brought there.
        """
        client, locate = self.tree.client, self.tree.locate
        answers = PerItemErrors(client.ping, self._run).ask_all(
            steps, lambda step: client.resolve(locate(step.repository), step.digest)
        )
        lost = {
            step: answer
            if isinstance(answer, MirrorError)
            else RegistryNotFoundError(
                f"{self.tree.name}: manifest {step.digest} was accepted and is not there",
                where=f"HEAD {step.repository}",
            )
            for step, answer in zip(steps, answers, strict=True)
            if answer is None or isinstance(answer, MirrorError)
        }
        repairer, source, failures = self._repairer(facts), self._copies(facts), []
        for step, error in lost.items():
            try:
                manifest = source.manifest(step.repository, step.digest)
                repairer.repair_manifest(step.repository, manifest, error)
            except MirrorError as err:
                failures.append((f"manifest {step.repository}@{step.digest}", err))
        if failures:
            raise IncompleteError(
                f"{len(failures)} manifests do not stay in {self.tree.name}", failures
            )

    def _extras(self, facts: Facts, known: Inventory, found: Observation) -> None:
        """Find what the leader does not have, and remove it if that was asked for."""
        options = self._options
        extras = find_extras(self.tree, facts.inventory, known, found, self._run)
        items = extras.items
        if not options.prune:
            self._add(extras=items)
            return
        refuse_to_prune(self.tree, self._leader, incomplete=bool(self._result.failures))
        self._add(failures=extras.unread)
        removal = extras.removal
        if removal:
            self._note(outcome=Outcome.DIFFERS if options.dry_run else Outcome.SYNCED)
        if options.dry_run or facts.published is None:
            self._add(extras=items)
            return
        gone, failures = remove_extras(self.tree, removal, facts.published.digest, self._run)
        removed = set(gone.items)
        self._add(
            failures=failures,
            removed=gone.items,
            extras=[one for one in items if one not in removed],
        )

    def _fail(self, item: str, error: MirrorError) -> None:
        if isinstance(error, IncompleteError):
            for part, reason in error.failures:
                self._fail(part, reason)
            return
        self._add(failures=[Failure(self.tree.name, item, error)])


def _stage_of(step: PutTag) -> int:
    return publication_stage(step.repository, step.tag)


def _awaited(path: str, tag: str) -> tuple[str, str] | None:
    """The component that must be complete before a tag may turn; None for the tag of an image."""
    if path in INDEX_REPOSITORIES:
        return component_of(f"{path}/{tag}")
    if publication_stage(path, tag) > 0 or path in (INSTALL, INSTALL_STANDALONE):
        return component_of(path)
    return None


def _misled(error: MirrorError) -> bool:
    """Whether a registry missed something that a manifest needs."""
    unknown = {"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"}
    return isinstance(error, RegistryError) and not unknown.isdisjoint(error.codes)
