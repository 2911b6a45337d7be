"""Sync: replicas brought to what the leader has, each by itself and all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mirror.errors import CancelledError, DeadlineError, InputError, StalledError, common_exit_code
from mirror.events import PhaseAdvanced, PhaseStarted, side_by_side
from mirror.oci import Digest
from mirror.operations.leader import Leader, LeaderAudit, choose_leader
from mirror.operations.replicate import Replication
from mirror.operations.results import Outcome, ReplicaResult, SyncOptions
from mirror.run import Run, gather
from mirror.sync.observation import Failure
from mirror.sync.repair import Storage
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
        return {
            "ok": not self.failures,
            "leader": self.leader,
            "statement": str(self.statement) if self.statement else None,
            "generation": self.generation,
            "dryRun": self.dry_run,
            "replicas": [one.to_document() for one in self.replicas],
            "audit": self.audit.to_document() if self.audit else None,
            "failures": [failure.to_document() for failure in self.failures],
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

    Every replica has `run.jobs` threads of its own and a result of its own, which `on_replica`
    hears as soon as it is there; none waits for another. What fails is in the report and is not
    raised. After `deadline_s` seconds what is not finished is stopped; half of that time is for
    choosing a leader.

    A statement of the leader that cannot be read is a failure of every replica.

    Raises:
        InputError: the leader is among the replicas, or there is none.
        UnreachableError, DeniedError: the leader does not answer.
        NotFoundError, ConflictError: `leader` is None, and none can be chosen.
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
    if len(replicas) > 1:
        run.on_event(
            PhaseStarted(f"syncing {len(replicas)} replicas from {leader.name}", len(replicas))
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
        others = [other.within(own) for other in replicas if other is not tree]
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
