"""The leader of a sync: what it states, read once and only when some replica needs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypeVar

from mirror.errors import (
    ConflictError,
    IncompleteError,
    MirrorError,
    NotFoundError,
    RegistryError,
    RegistryNotFoundError,
    UnreachableError,
)
from mirror.oci import Digest
from mirror.operations.results import Outcome, ReplicaResult, SyncOptions
from mirror.operations.trees import ask_at_once, listed_repositories, usual_repositories, walk_tree
from mirror.run import Run
from mirror.sync import (
    Finding,
    Inventory,
    InventoryBuilder,
    ManifestNode,
    Plan,
    make_plan,
    transfer,
)
from mirror.sync.failover import FailoverSource
from mirror.sync.observation import Depth, Failure, Item, Observation
from mirror.sync.observe import observe
from mirror.sync.plan import lacking
from mirror.sync.publication_state import (
    LATEST,
    PublicationState,
    Published,
    read_artifact,
    read_state,
    read_statement,
)
from mirror.sync.repair import (
    Repairer,
    RepairingTarget,
    describe_damage,
    repaired,
    without_manifests,
)
from mirror.sync.statement import REPOSITORY, Artifact, Statement, generation_of
from mirror.sync.tree import RegistryTree

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
        """What could not be read of a leader that states nothing, as far as somebody asked."""
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
        """What the leader states and does not hold; waits until the audit has called `judge`."""
        return self._audit.result()

    def judge(self, failures: tuple[Failure, ...]) -> None:
        """Answer everybody who waits in `audited`. Call it once."""
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


class LeaderAudit:
    """Compares the leader with its statement. Call `carry_out` once, in a thread of its own.

    With `deep`, lost or damaged content is taken from a replica: equal digests mean equal content.
    Tags are the leader's own decision, so differences are only reported.
    """

    def __init__(
        self,
        leader: Leader,
        others: Sequence[RegistryTree],
        options: SyncOptions,
        *,
        run: Run,
    ) -> None:
        self._leader, self._others, self._options = leader, others, options
        self._run = run
        self.tree = leader.tree.within(run)
        self._place = self.tree.target(run)
        self._started = time.monotonic()
        self._damaged: tuple[Finding, ...] = ()
        self._healed: tuple[Finding, ...] = ()
        self._failures: tuple[Failure, ...] = ()
        self._extras: tuple[str, ...] = ()
        self._untold: tuple[Failure, ...] = ()  # of repositories beyond its statement
        self._facts: Facts | None = None

    def carry_out(self) -> ReplicaResult:
        """Do all of it. What fails is in the result and is never raised."""
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
            return facts.failures  # it was walked, so there is no statement to compare with
        depth = Depth.DEEP if self._options.deep else Depth.LISTED
        found = self._observe(facts, depth, also=self._repositories())
        self._extras = tuple(_unstated(facts, found))
        self._untold += found.unlisted_failures
        if not self._options.deep:
            return self._judged(facts, found)
        place, options = self._place, self._options
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
        if options.dry_run or not self._others:
            self._damaged = (
                *describe_damage(place.name, damaged),
                *(Finding(place.name, f"{d} is missing", digest=d) for d in lost),
            )
            return () if options.dry_run else self._as_failures()
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
        repairer = Repairer(place, source, self.tree.storage, run=self._run)
        healed, failures = repairer.repair_blobs(damaged, wanted)
        target = RepairingTarget(place, repairer, broken)
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
                repaired(place.name, path, digest)
                for path, digest in missing
                if digest not in broken
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
        wanted = facts.with_statement() if self._options.deep else facts.inventory
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
