"""Sync: replicas brought to what the leader has, each by itself and all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mirror.documents import document
from mirror.errors import (
    CancelledError,
    ConflictError,
    DeadlineError,
    IncompleteError,
    InputError,
    MirrorError,
    NotFoundError,
    RegistryError,
    StalledError,
    UnreachableError,
    common_exit_code,
    counted,
)
from mirror.events import PhaseAdvanced, PhaseStarted, side_by_side
from mirror.oci import Digest
from mirror.operations.leader import Facts, Leader, choose_leader
from mirror.operations.replicate import (
    Outcome,
    RegistryTask,
    ReplicaResult,
    Replication,
    SyncOptions,
)
from mirror.operations.trees import listed_repositories, usual_repositories
from mirror.run import Run, gather
from mirror.sync import Finding, Plan, make_plan, transfer
from mirror.sync.observation import Depth, Failure, Observation, items_of
from mirror.sync.plan import missing_content
from mirror.sync.publication_state import read_state
from mirror.sync.repair import (
    Storage,
    describe_damage,
    repaired,
    without_manifests,
)
from mirror.sync.statement import REPOSITORY
from mirror.sync.tree import RegistryTree


@dataclass(frozen=True, slots=True)
class SyncReport:
    """A finished sync: how each replica stands.

    `statement` and `generation` are what the leader states; None if it states nothing.
    `audit` is what an audit of the leader itself found; None where there was none.
    """

    leader: str
    statement: Digest | None
    generation: int | None
    dry_run: bool
    replicas: tuple[ReplicaResult, ...]
    audit: ReplicaResult | None = None
    unasked: tuple[Failure, ...] = ()

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Everything that could not be done, at whichever registry."""
        audited = self.audit.failures if self.audit else ()
        return (*self.unasked, *audited, *(f for one in self.replicas for f in one.failures))

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, else the code that all failures share, or 1."""
        return common_exit_code(failure.error for failure in self.failures)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        stated = ("leader", "statement", "generation")
        return {
            "ok": not self.failures,
            **document(self, *stated, "dry_run", "replicas", "audit", "failures"),
        }


def sync_replicas(
    leader: RegistryTree | None,
    replicas: Sequence[RegistryTree],
    *,
    audit: bool = False,
    deep: bool = False,
    prune: bool = False,
    dry_run: bool = False,
    audit_leader: bool = True,
    expected: Digest | None = None,
    also: Sequence[RegistryTree] = (),
    deadline_s: float | None = None,
    on_replica: Callable[[ReplicaResult], None] = lambda _result: None,
    run: Run | None = None,
) -> SyncReport:
    """Make every replica hold what the leader states, and state it itself.

    `leader` None takes the tree of highest generation among `replicas`. Equal statements end the
    work after one request per registry. Else what a replica states is compared, and only the
    difference asked about and carried. `audit` compares every tag and manifest by digest instead,
    and the leader with its own statement; `deep` reads every byte back as well and replaces what is
    damaged, at the leader too unless `audit_leader` is False (a prune needs that audit). A leader
    that states nothing is walked, and nothing is stated then.

    `prune` removes what the leader does not have; without it that is only reported.

    `expected` is the statement that the leader must have, where it stands for a registry that has
    the same. `also` are registries that give what the leader and the replicas have lost.

    Every replica has `run.jobs` threads of its own and a result of its own, which `on_replica`
    hears as soon as it is there; none waits for another. What fails is in the report and is not
    raised. After `deadline_s` seconds unfinished work is stopped; half of that time is for
    choosing a leader.

    A statement of the leader that cannot be read is a failure of every replica.

    Raises:
        InputError: the leader is among the replicas, or there is none.
        UnreachableError, DeniedError: the leader does not answer.
        NotFoundError, ConflictError: `leader` is None, and none can be chosen.
        ConflictError: the leader does not state what is `expected`.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    timed = run.with_deadline(deadline_s)
    unasked: tuple[Failure, ...] = ()
    for tree in replicas:
        if tree.storage is not None:
            Storage(tree.storage).check()
    if leader is None:
        patience_s = None if deadline_s is None else deadline_s / 2
        leader, unasked = choose_leader(replicas, patience_s=patience_s, run=run)
        absent = {failure.place for failure in unasked}
        replicas = [one for one in replicas if one is not leader and one.name not in absent]
    names = [tree.name for tree in replicas]
    if leader.name in names or len(set(names)) < len(names) or not (names or unasked):
        raise InputError("a sync goes from one registry to others, each of them named once")
    options = SyncOptions(audit, deep, prune, dry_run)
    try:
        head = Leader.ask(leader.within(timed), run=timed)
    except DeadlineError as err:
        run.check()
        raise StalledError(
            f"the leader {leader.name} did not say within {deadline_s:g} s what it holds",
            where=leader.name,
        ) from err
    if expected is not None and head.digest != expected:
        raise ConflictError(
            f"it stated {expected} just now and states {head.digest} instead; run this again",
            where=leader.name,
        )
    if len(replicas) > 1:
        run.on_event(
            PhaseStarted(
                f"syncing {counted(len(replicas), 'replica')} from {leader.name}", len(replicas)
            )
        )
    alone = len(replicas) == 1 and not options.full

    def part(tree: RegistryTree) -> Run:
        own = Run.of(timed)
        return own if alone else own.heard_by(side_by_side(run.on_event, tree.name))

    def in_time(result: ReplicaResult, own: Run) -> ReplicaResult:
        """`result`, or why it has none if `deadline_s` is over; a stopped `run` is raised."""
        if own.remaining_s() != 0 or result.outcome is not Outcome.FAILED:
            return result
        run.check()
        assert deadline_s is not None, "the run itself has time left"
        return _overdue(result, deadline_s)

    def replicate(tree: RegistryTree) -> ReplicaResult:
        own = part(tree)
        others = [one.within(own) for one in (head.tree, *replicas, *also) if one is not tree]
        result = in_time(
            Replication(tree.within(own), head, others, options, run=own).carry_out(), own
        )
        run.on_event(PhaseAdvanced())
        on_replica(result)
        return result

    def audit_the_leader() -> ReplicaResult:
        own = part(leader)
        others = [one.within(own) for one in replicas]
        return in_time(LeaderAudit(head, others, options, run=own).carry_out(), own)

    # The audit begins first: replicas that are to be pruned wait for what it finds.
    works: list[Callable[[], ReplicaResult]] = [partial(replicate, tree) for tree in replicas]
    audited = options.full and (audit_leader or prune)
    if audited:
        works.insert(0, audit_the_leader)
    results = gather(works, lambda work: work(), run=run.with_jobs(max(1, len(works))))
    checked = results.pop(0) if audited else None
    return SyncReport(
        leader.name,
        head.digest,
        head.generation,
        dry_run,
        tuple(results),
        checked,
        unasked if options.full else (*unasked, *head.unread),
    )


def _overdue(result: ReplicaResult, deadline_s: float) -> ReplicaResult:
    error = StalledError(
        f"{result.name} was not finished within {deadline_s:g} s and was stopped; what arrived is "
        "kept: run the command again, with more time or fewer replicas",
        where=result.name,
    )
    kept = tuple(one for one in result.failures if not isinstance(one.error, CancelledError))
    return replace(result, failures=(*kept, Failure(result.name, "the replica as a whole", error)))


class LeaderAudit(RegistryTask):
    """Compares the leader with its statement.

    With `deep`, lost or damaged content is taken from a replica: equal digests mean equal content.
    Tags are the leader's own decision, so differences are only reported.
    """

    what = "the leader as a whole"

    def __init__(
        self, leader: Leader, others: Sequence[RegistryTree], options: SyncOptions, *, run: Run
    ) -> None:
        super().__init__(leader.tree.within(run), leader, others, options, run=run)
        self._note(statement=leader.digest)
        self._unlisted: tuple[Failure, ...] = ()  # of repositories beyond its statement

    def carry_out(self) -> ReplicaResult:
        """Do all of it, once. What fails is in the result and is never raised."""
        sound = False
        try:
            result = super().carry_out()
            sound = not (result.failures or result.damaged)
        finally:
            self._leader.judge(sound=sound)
        self._add(failures=self._unlisted)
        if self._unlisted:
            self._note(outcome=Outcome.FAILED)
        return self._result

    def _carry_out(self) -> None:
        facts = self._facts
        if facts.published is None:
            self._add(failures=facts.failures)
            return  # it was walked, so there is no statement to compare with
        self._note(generation=facts.published.statement.generation)
        depth = Depth.DEEP if self._options.deep else Depth.LISTED
        found = self._observe(self._wanted, depth, self._repositories())
        self._add(extras=_unstated(facts, found))
        self._unlisted += found.unlisted_failures
        if self._options.deep:
            damaged = found.all_damage()
            blobs = self._wanted.blob_sizes()
            broken = {d: error for d, error in damaged.items() if d not in blobs}
            plan = make_plan(self._wanted, without_manifests(found.held, broken))
            if damaged or plan.blobs or plan.manifests:
                if not self._repair(replace(plan, tags=()), damaged):
                    return
                found = self._observe(self._wanted, Depth.AUDIT)
        self._report_lost(facts, found)

    def _repair(self, plan: Plan, damaged: Mapping[Digest, MirrorError]) -> bool:
        """Replace what is damaged, and bring what is missing; False if only a report is wanted."""
        name = self._place.name
        manifests = [step for wave in plan.manifests for step in wave]
        if self._options.dry_run or not self._others:
            lost = [*(step.digest for step in plan.blobs), *(step.digest for step in manifests)]
            found = [
                *describe_damage(name, damaged),
                *(Finding(name, f"{d} is missing", digest=d) for d in lost),
            ]
            self._note(outcome=Outcome.DIFFERS, damaged=tuple(found))
            if not self._options.dry_run:
                self._add(
                    failures=(
                        Failure(one.place, str(one.digest), NotFoundError(one.problem))
                        for one in found
                    )
                )
            return False
        self._repair_blobs(damaged)
        try:
            transfer(plan, self._copies, self._place, run=self._run)
        except IncompleteError as err:
            self._fail("", err)
        else:
            missing = [(step.into[0], step.digest) for step in plan.blobs]
            missing += [(step.repository, step.digest) for step in manifests]
            self._add(
                repaired=(
                    repaired(name, path, digest)
                    for path, digest in missing
                    if digest not in self._place.damaged
                )
            )
        self._add(repaired=self._place.repaired)
        return True

    def _report_lost(self, facts: Facts, found: Observation) -> None:
        """Report what the leader states and does not hold."""
        failures = list(found.failures)
        unclear = {(item.repository, item.tag, item.digest) for item in found.unclear}
        lost = [
            item
            for path, content in missing_content(facts.inventory, found.held).repositories.items()
            for item in items_of(path, content)
            if (path, item.tag, item.digest) not in unclear
        ]
        newest = read_state(self._tree).newest if any(item.tag for item in lost) else None
        coming = newest.statement if newest and newest != facts.published else None
        for item in lost:
            path, tag = item.repository, item.tag or ""
            now = found.held.repository(path).tags.get(tag)
            problem = (
                f"the leader states {item.digest} and the tag names {now}: somebody changed it "
                "without stating it, so no replica follows; `mirror push` to the leader the "
                "bundle that it is to have, which states it and sends only what is missing"
            )
            if now is None:
                problem = (
                    "the leader states it and does not have it; sync with --deep takes content "
                    "back from the replicas, and a new push restores everything"
                )
            elif coming and coming.inventory.repository(path).tags.get(tag) == now:
                problem = (
                    f"the leader states {item.digest} and the tag names {now} for the sake of "
                    f"generation {coming.generation}, whose publication is under way, was finished "
                    "just now or was interrupted: run this again when that push is over, and if "
                    "none runs, the push"
                )
            failures.append(Failure(self._place.name, str(item), NotFoundError(problem)))
        self._add(failures=failures)

    def _repositories(self) -> frozenset[str]:
        """All below its root, as it lists them: another tool may have brought new ones.

        Where it does not list them, those that a release tree has by its nature.
        """
        with suppress(UnreachableError):  # by this request, which costs large registries much
            listed = listed_repositories(self._tree)
            if not isinstance(listed, RegistryError):
                return frozenset(listed)
        try:
            return frozenset(usual_repositories(self._tree))
        except RegistryError as err:
            self._unlisted = (Failure(self._place.name, "its list of repositories", err),)
            return frozenset()


def _unstated(facts: Facts, found: Observation) -> Iterator[str]:
    """Tags of the leader's tree that its statement does not have."""
    for path, tags in sorted(found.listed.items()):
        if path != REPOSITORY:
            content = facts.inventory.repository(path)
            for tag in sorted(tags - content.tags.keys() - content.referrers_tags()):
                yield f"tag {path or '/'}:{tag}"
