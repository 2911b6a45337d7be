"""One cycle over real registries: choose a leader, bring one replica to what it holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mirror.documents import document
from mirror.errors import MirrorError, NotFoundError, UnreachableError
from mirror.oci import Descriptor, Digest
from mirror.operations.leader import Leader, adopt, choose_leader, may_move
from mirror.operations.replicate import Outcome, ReplicaResult, SyncOptions
from mirror.operations.sync import LeaderAudit, sync_replicas
from mirror.operations.trees import ask_at_once, walk_tree
from mirror.run import Run
from mirror.sync import Inventory, make_plan
from mirror.sync.observation import Depth, Failure
from mirror.sync.observe import observe
from mirror.sync.publication_state import (
    LATEST,
    PENDING,
    Published,
    read_statement,
    statement_digest,
    statement_tip,
)
from mirror.sync.tree import RegistryTree
from mirror.sync.walk import Memory
from mirror.watch.fleet import Rollouts, RolloutStep, StagedRollout
from mirror.watch.settings import AUTO, CheckLevel

_PATIENCE_S = 5.0
"""How long a registry may take to say what it states, where others can lead in its place."""

_FIRST_REST_S, _LONGEST_REST_S = 10.0, 300.0
"""A registry that did not answer is not asked again for so long; then one cycle asks it."""


@dataclass(frozen=True, slots=True)
class CycleResult:
    """What one cycle found and did about one replica.

    `declared` is how many manifests and blobs the leader declares, `verified` how many of them the
    replica is known to hold; None where that is unknown. `sent` in bytes. `leader` names the
    registry that the cycle followed, and `waiting` says why nothing new is taken from it yet. `bug`
    is an exception other than a `MirrorError`, which ended it.
    """

    level: CheckLevel
    complete: bool
    errors: tuple[str, ...] = ()
    leader: str | None = None
    generation: int | None = None
    leader_generation: int | None = None
    declared: int | None = None
    verified: int | None = None
    sent: int = 0
    duration_s: float = 0.0
    waiting: str = ""
    bug: str | None = None

    @property
    def lag(self) -> int | None:
        """Generations behind the leader; None where either is unknown."""
        if self.leader_generation is None:
            return None
        return max(0, self.leader_generation - (self.generation or 0))

    def to_document(self) -> dict[str, Any]:
        """As JSON values."""
        return document(
            *(self, "complete", "waiting", "depth=level", "leader"),
            *("generation", "leader_generation"),
            *("declaredDigests=declared", "verifiedDigests=verified", "bytes=sent", "errors"),
        )


@dataclass(frozen=True, slots=True)
class _Pair:
    """A leader that was named and a replica, and what each of them states."""

    leader: RegistryTree
    tree: RegistryTree
    news: Digest | None
    own: Digest | None


class Replicator:
    """Looks after replicas, one thread each; `leader` is a name in `trees`, or `auto`.

    `staging` says when they take what a named leader has, and from where.
    """

    def __init__(
        self,
        trees: Mapping[str, RegistryTree],
        leader: str,
        *,
        staging: StagedRollout | None = None,
        prune: bool = False,
        jobs: int = 4,
    ) -> None:
        self._staging = staging or StagedRollout(Rollouts())
        self._trees, self._leader, self._prune, self._jobs = trees, leader, prune, jobs
        self._silent = _Silent()
        self._lock = threading.Lock()
        self._stated: Published | None = None  # under the lock: the statement that was read last
        self._tips: dict[tuple[str, str], Descriptor | None] = {}  # under the lock, for `_tip`
        self._unstated = False  # whether the leader stated nothing when it was last asked
        self._memories = {tree.name: Memory(may_move) for tree in trees.values()}

    def __call__(self, replica: str, level: CheckLevel, run: Run) -> CycleResult:
        """Bring `replica` up to date."""
        tree, run = self._trees[replica], run.with_jobs(self._jobs)
        unasked: tuple[Failure, ...] = ()
        step, pair = RolloutStep(), None
        if level is not CheckLevel.STATEMENT:
            for memory in self._memories.values():
                memory.forget()
        if self._leader != AUTO:
            leader = self._trees[self._leader]
            news, own = self._tip(leader.within(run)), self._tip(tree.within(run))
            pair = _Pair(leader, tree, news, own)
            if level is CheckLevel.STATEMENT:
                with self._lock:
                    known = self._stated
                equal = None
                if known is not None and known.digest == news == own:
                    equal = self._settled(known, tree, leader.name, run)
                if equal := equal or self._walked_equal(leader, tree, run):
                    return equal
            step = self._staged(pair, run)
            if step.waiting:
                return self._waiting(pair, level, step, run)
        else:
            if level is CheckLevel.STATEMENT and (equal := self._all_equal(tree, run)):
                return equal
            try:
                leader, unasked = self._highest(run)
            except NotFoundError:
                if tree.keys.trusted:
                    raise  # without statements nothing says what is right
                return self._adopted(tree, level, run)
        own_failures = tuple(failure for failure in unasked if failure.place == tree.name)
        if own_failures:  # it cannot be asked, or is on its way to something newer
            unasked = tuple(failure for failure in unasked if failure not in own_failures)
            result = ReplicaResult(tree.name, Outcome.FAILED, failures=own_failures)
        elif leader is tree:
            result = self._audited(tree, level, run)
        else:
            news = pair.news if pair and step.source else None
            try:
                report = sync_replicas(
                    step.source or leader,
                    [tree],
                    audit=level is CheckLevel.AUDIT,
                    deep=level is CheckLevel.DEEP,
                    prune=self._prune and level is not CheckLevel.STATEMENT,
                    audit_leader=self._prune,
                    expected=news,
                    also=[leader] if step.source else (),
                    deadline_s=step.closes_s,
                    run=run,
                )
            except MirrorError as err:
                self._staging.note_outcome(step.source, news, [err])
                raise
            (result,) = report.replicas
            if pair and step.closes_s and result.failures and (late := self._staging.closed(step)):
                return self._waiting(pair, level, late, run, result.sent)
            self._staging.note_outcome(step.source, news, [one.error for one in result.failures])
        return self._result(level, step.source or leader, tree, result, unasked, run)

    # -- asking and comparing ----------------------------------------------------------------

    def _asked(self) -> tuple[list[RegistryTree], tuple[Failure, ...]]:
        """The registries to ask, and why each of the others is not asked."""
        asked: list[RegistryTree] = []
        resting: list[Failure] = []
        for tree in self._trees.values():
            error = self._silent.error(tree.name)
            if error is None:
                asked.append(tree)
            else:
                resting.append(Failure(tree.name, "its statement", error))
        return asked, tuple(resting)

    def _highest(self, run: Run) -> tuple[RegistryTree, tuple[Failure, ...]]:
        """Whichever registry states the highest generation; raises as `choose_leader`."""
        asked, resting = self._asked()
        leader, unasked = choose_leader(asked, patience_s=_PATIENCE_S, run=run)
        errors = {failure.place: failure.error for failure in unasked}
        for tree in asked:
            self._silent.note(tree.name, errors.get(tree.name))
        return leader, (*resting, *unasked)

    def _all_equal(self, tree: RegistryTree, run: Run) -> CycleResult | None:
        """The result if every registry states what was read last; else None.

        That is one conditional request each, and one more for `tree`.

        A peer that does not answer is reported, and counts as unchanged.
        """
        with self._lock:
            known = self._stated
        asked, unasked = self._asked()
        if known is None or tree not in asked:
            return None
        answers = ask_at_once(asked, self._tip, patience_s=_PATIENCE_S, run=run)
        for one, answer in zip(asked, answers, strict=True):
            error = answer if isinstance(answer, MirrorError) else None
            self._silent.note(one.name, error)
            if error is not None:
                unasked += (Failure(one.name, "its statement", error),)
            if answer != known.digest and (error is None or one is tree):
                return None
        return self._settled(known, tree, tree.name, run, *unasked)

    def _settled(
        self, known: Published, tree: RegistryTree, leader: str, run: Run, *unasked: Failure
    ) -> CycleResult | None:
        """The result for `tree`, which states what is `known`, unless it announced anything else.

        Its tags may have turned to that.
        """
        if self._tip(tree.within(run), PENDING) not in (None, known.digest):
            return None
        number, declared = known.statement.generation, count(known.statement.inventory)
        return CycleResult(
            CheckLevel.STATEMENT,
            complete=True,
            errors=texts(unasked),
            leader=leader,
            generation=number,
            leader_generation=number,
            declared=declared,
            verified=declared,
        )

    def _tip(self, tree: RegistryTree, tag: str = LATEST) -> Digest | None:
        """As `statement_digest`; a registry that answers 304 only says that nothing changed."""
        place = tree.name, tag
        with self._lock:
            known = self._tips.get(place)
        found = statement_tip(tree, tag, known)
        with self._lock:
            self._tips[place] = found
        return found.digest if found else None

    def _staged(self, pair: _Pair, run: Run) -> RolloutStep:
        """Whether the replica takes now what the leader states, and from where."""
        if pair.news is None:
            return RolloutStep()
        if pair.news == pair.own:  # a closer look at the same: there is nothing to wait for
            return RolloutStep(source=self._staging.source(pair.news, self._tip, run))

        def generation() -> int | None:
            return Leader.ask(pair.leader.within(run), run=run).generation

        return self._staging.due(pair.tree.name, pair.news, generation, self._tip, run)

    def _waiting(
        self, pair: _Pair, level: CheckLevel, step: RolloutStep, run: Run, sent: int = 0
    ) -> CycleResult:
        """The result for a replica that waits; it is compared with what it states itself."""
        audit = ReplicaResult(pair.tree.name, Outcome.EQUAL)
        if pair.own is not None:
            audit = self._audited(pair.tree, level, run)
        return CycleResult(
            level,
            complete=False,
            errors=texts(audit.failures),
            waiting=step.waiting,
            leader=pair.leader.name,
            generation=audit.generation,
            leader_generation=step.generation,
            sent=sent,
        )

    def _walked_equal(
        self, leader: RegistryTree, tree: RegistryTree, run: Run
    ) -> CycleResult | None:
        """The result if `leader` still states nothing and `tree` has all that its tags name."""
        if leader is tree or tree.keys.trusted or not self._unstated:
            return None
        if statement_digest(leader.within(run)) is not None:
            return None
        wanted, here = (
            walk_tree(one.within(run), memory=self._memories[one.name], run=run).complete()
            for one in (leader, tree)
        )
        if wanted.failures or here.failures or make_plan(wanted.held, here.held):
            return None
        declared = count(wanted.held)
        return CycleResult(
            CheckLevel.STATEMENT,
            complete=True,
            leader=leader.name,
            declared=declared,
            verified=declared,
        )

    def _audited(self, tree: RegistryTree, level: CheckLevel, run: Run) -> ReplicaResult:
        """Compare the replica that leads with its own statement."""
        options = SyncOptions(audit=level is CheckLevel.AUDIT, deep=level is CheckLevel.DEEP)
        tree = tree.within(run)
        head = Leader.ask(tree, run=run)
        if not options.full:
            return ReplicaResult(tree.name, Outcome.EQUAL, head.digest, head.generation)
        others = [one.within(run) for one in self._trees.values() if one.name != tree.name]
        return LeaderAudit(head, others, options, run=run).carry_out()

    def _adopted(self, tree: RegistryTree, level: CheckLevel, run: Run) -> CycleResult:
        """No registry states anything: copy what other tools pushed and no tag contradicts."""
        peers = [one for one in self._trees.values() if one is not tree]
        done = adopt(tree, peers, memories=self._memories, run=run)
        declared = count(done.inventory)
        return CycleResult(
            level,
            complete=not done.failures,
            errors=texts(done.failures),
            declared=declared,
            verified=None if done.failures else declared,
            sent=done.sent,
        )

    # -- results -------------------------------------------------------------------------------

    def _result(
        self,
        level: CheckLevel,
        leader: RegistryTree,
        tree: RegistryTree,
        result: ReplicaResult,
        unasked: tuple[Failure, ...],
        run: Run,
    ) -> CycleResult:
        complete = not result.failures
        # Who states the same has the same document, and the leader need not give it once more.
        place = tree if complete and result.statement is not None else leader
        published = self._published(place.within(run))
        self._unstated = published is None
        declared = count(published.statement.inventory) if published else None
        return CycleResult(
            level,
            complete=complete,
            errors=texts((*unasked, *result.failures)),
            leader=leader.name,
            generation=result.generation,
            leader_generation=published.statement.generation if published else None,
            declared=declared,
            verified=declared if complete else self._verified(published, tree.within(run), run),
            sent=result.sent,
        )

    def _published(self, leader: RegistryTree) -> Published | None:
        """What the leader states. The layer, which may be large, is read once per statement."""
        digest = self._tip(leader)
        with self._lock:
            if self._stated is not None and self._stated.digest == digest:
                return self._stated
        published = read_statement(leader, digest) if digest is not None else None
        if published is not None:
            with self._lock:
                self._stated = published
        return published

    def _verified(self, published: Published | None, tree: RegistryTree, run: Run) -> int | None:
        """Ask an incomplete replica how much of it it has; None if it does not answer."""
        if published is None:
            return None
        try:
            wanted = published.statement.inventory
            found = observe(tree.target(run), wanted, Depth.LISTED, run=run)
            return count(found.held)
        except MirrorError:
            run.check()
            return None  # the failures of the result say why it does not answer


class _Silent:
    """The registries that did not answer lately: no cycle waits for them again. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # Under the lock: name → (why, seconds of rest, when the rest is over).
        self._resting: dict[str, tuple[MirrorError, float, float]] = {}

    def error(self, name: str) -> MirrorError | None:
        """Why `name` is not to be asked now, or None. At the end of a rest one caller asks it."""
        now = self._clock()
        with self._lock:
            why, rest_s, over = self._resting.get(name, (None, 0.0, 0.0))
            if why is not None and now >= over:
                self._resting[name] = (why, rest_s, now + rest_s)
                return None
            return why

    def note(self, name: str, error: MirrorError | None) -> None:
        """Take in what asking `name` came to."""
        now = self._clock()
        with self._lock:
            if not isinstance(error, UnreachableError):
                self._resting.pop(name, None)
                return
            before = self._resting.get(name)
            rest_s = _FIRST_REST_S if before is None else min(2 * before[1], _LONGEST_REST_S)
            self._resting[name] = (error, rest_s, now + rest_s)


def count(inventory: Inventory) -> int:
    """How many distinct manifests and blobs there are."""
    digests: set[Digest] = set()
    for content in inventory.repositories.values():
        digests.update(content.manifests)
        digests.update(content.blobs)
    return len(digests)


def texts(failures: Iterable[Failure]) -> tuple[str, ...]:
    """Failures as text."""
    return tuple(str(failure) for failure in failures)
