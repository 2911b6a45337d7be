"""Push: read the bundle where it lies, ask registries what they have, carry the difference.

A push to one registry is a push to several with one member. What several must have besides is
equality: each gets everything that the first one states, and is asked for all of it in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mirror.bundle.archive import missing_findings
from mirror.bundle.reader import BundleReader
from mirror.bundle.verify import check_signed
from mirror.errors import (
    CancelledError,
    ConflictError,
    IncompleteError,
    MirrorError,
    MissingBaseError,
    counted,
)
from mirror.events import PhaseStarted, Warned, side_by_side
from mirror.layout import publication_stage, tool_name
from mirror.operations.push_reports import MemberReport, PushPlan, PushReport, QuorumReport
from mirror.operations.trees import ask_at_once
from mirror.operations.trust import check_downgrade
from mirror.release.discovery import discovery_images
from mirror.run import Run
from mirror.sync import Inventory, MemoryStore, Plan, TransferReport, by_archive, make_plan, union
from mirror.sync.content import Source
from mirror.sync.failover import FailoverSource, Holder
from mirror.sync.observation import Depth, findings_of, listed
from mirror.sync.observe import Verification, observe
from mirror.sync.publication import Goal, Publication
from mirror.sync.publication_state import (
    PublicationState,
    Published,
    next_statement,
    read_artifact,
    read_state,
    statement_digest,
)
from mirror.sync.statement import REPOSITORY
from mirror.sync.tree import RegistryTarget, RegistryTree

Result = TypeVar("Result")

_Problems = dict[str, MirrorError]
"""Registry → why it does not hold the release."""


def push(
    bundle: BundleReader,
    tree: RegistryTree,
    *,
    key: bytes | None = None,
    check_access: bool = True,
    check_blobs: bool = False,
    verification: Verification = Verification.TAGS,
    run: Run | None = None,
) -> PushReport:
    """Make a registry hold everything that the bundle holds.

    Nothing is unpacked. Blobs come first, then manifests: an image whose tag is new by this tag,
    all others by digest. When all of them are there, the other tags turn
    (`mirror.sync.publication`): release channels after all images, and last the index of modules,
    packages and plugins. A push that was stopped anywhere is completed by
    running it again, and sends only what is missing.

    What a delta leaves out must be in the registry already; blobs may lie in another repository,
    from which they are mounted.

    Args:
        key: a public key in PEM; the bundle must have been signed by its holder.
        check_access: whether to prove the right to write before the first byte moves.
        check_blobs: whether to ask for the blobs of manifests that are there. A registry takes a
            manifest only together with its blobs, so this finds what it lost since then.
        verification: what the registry is asked for afterwards.

    Raises:
        MissingBaseError: the registry lacks what a delta leaves out; nothing was written.
        SignatureError: the bundle was not signed by the holder of `key`; nothing was written.
        DowngradeError: with `key` or trusted keys: a release channel would lead to an older version
            than now, and `tree.keys` does not allow that; nothing was written.
        DamagedBundleError: the bundle is not whole; nothing was written.
        DeniedError: the registry may not be written to; nothing was written.
        IncompleteError: some content could not be brought over, or was accepted and is not there;
            no tag names what is missing.
        ConflictError: somebody else changed the same tags meanwhile.
        CancelledError: the run was stopped.
    """
    run = Run.of(run)
    tree = tree.within(run)
    depth = Depth.AUDIT if check_blobs else Depth.PROBE
    work = PushWork.of(bundle, key, run, check_access, depth, verification, whole=False)
    state = work.look(tree)
    return work.finish(tree, state, work.goal(tree, state))


def push_to_all(
    bundle: BundleReader,
    trees: Sequence[RegistryTree],
    *,
    quorum: int | None = None,
    key: bytes | None = None,
    check_access: bool = True,
    run: Run | None = None,
) -> QuorumReport:
    """Bring all registries to the state that the first one has when it holds the bundle too.

    They are worked on at the same time, each with `run.jobs` threads. What the bundle lacks of that
    state comes from whichever other registry has it, and what happens to one does not concern the
    others. If the first does not answer, the one with the highest generation takes its place. A
    registry counts if, after its tags have turned, it has everything that it states.

    Args:
        quorum: how many must count (1 to all); None for all.
        key, check_access: as `push`, the latter for each registry.

    Raises:
        SignatureError, DamagedBundleError: as `push`; nothing was written.
        IncompleteError: fewer than `quorum` count; `failures` has every other one with its reason,
            a DowngradeError where nothing was written as that one has something newer.
        CancelledError: the run was stopped.
        ValueError: `quorum` is not between 1 and the number of registries.
    """
    run = Run.of(run)
    quorum = len(trees) if quorum is None else quorum
    if not 1 <= quorum <= len(trees):
        raise ValueError(f"a quorum of {quorum} out of {len(trees)}")
    trees = [tree.within(run) for tree in trees]
    work = PushWork.of(bundle, key, run, check_access)
    run.on_event(PhaseStarted(f"asking {counted(len(trees), 'registry')}"))
    problems: _Problems = {}
    states = work.at_once(trees, work.look, problems)
    alive = [tree for tree in trees if tree.name in states]
    goal = work.first_goal(alive, states, problems)
    reports: Mapping[str, tuple[Plan, TransferReport]] = {}
    if goal is not None:
        reports = work.bring_all(alive, states, goal, problems)
    if goal is None or len(reports) < quorum:
        holding = ", ".join(sorted(reports)) or "none"
        raise IncompleteError(
            f"{len(reports)} of {len(trees)} registries hold the complete, checked inventory, "
            f"and {quorum} must; those that do: {holding}. The others:",
            [(tree.name, problems[tree.name]) for tree in trees if tree.name in problems],
        )
    for name, problem in problems.items():
        run.on_event(Warned(f"{name} does not hold the release: {problem}"))
    return QuorumReport(
        quorum,
        work.bundle,
        work.bundle.digest(),
        goal.published,
        goal.new,
        tuple(
            MemberReport(
                tree.name,
                reports[tree.name][1] if tree.name in reports else None,
                problems.get(tree.name),
            )
            for tree in trees
        ),
    )


def plan_push(
    bundle: BundleReader,
    tree: RegistryTree,
    *,
    key: bytes | None = None,
    check_blobs: bool = False,
    run: Run | None = None,
) -> PushPlan:
    """Say what `push` with the same arguments would do. The registry is only read.

    Raises:
        SignatureError, DowngradeError, DamagedBundleError, MissingBaseError, CancelledError: as
            `push`.
    """
    run = Run.of(run)
    tree = tree.within(run)
    depth = Depth.AUDIT if check_blobs else Depth.PROBE
    work = PushWork.of(bundle, key, run, depth=depth, whole=False)
    state, held = work.look(tree), work.held(tree.target(run))
    check_downgrade(tree, state, held, work.wanted, strict=work.strict, run=run)
    return PushPlan(tree, work.bundle, make_plan(work.wanted, held, stage=publication_stage))


# -- the work --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PushGoal:
    """What all registries are to hold and to state.

    `lead` is the registry that decides; it had `held` of `inventory` before. `published` is what
    all state in the end; unless it is `new`, `lead` states it already.
    """

    lead: RegistryTree
    held: Inventory
    inventory: Inventory
    published: Published
    statement: Goal | None
    new: bool


@dataclass(frozen=True, slots=True)
class PushWork:
    """What a push carries, and how.

    With `whole` a registry must hold everything that it will state, and is asked for it; without,
    what the bundle brings is enough. `strict` refuses a bundle that is older than what is there.
    """

    reader: BundleReader
    bundle: Inventory
    index: MemoryStore
    wanted: Inventory
    run: Run
    check_access: bool
    depth: Depth = Depth.AUDIT
    verification: Verification = Verification.ALL
    whole: bool = True
    strict: bool = False

    @classmethod
    def of(
        cls,
        reader: BundleReader,
        key: bytes | None,
        run: Run,
        check_access: bool = True,
        depth: Depth = Depth.AUDIT,
        verification: Verification = Verification.ALL,
        *,
        whole: bool = True,
    ) -> PushWork:
        """A push of a bundle and of the images that index it, signed by the holder of `key`."""
        reader.follow(run)
        if key is not None:
            check_signed(reader, key, run)
        bundle = reader.inventory()
        for notice in reader.warnings():
            run.on_event(Warned(notice))
        index = discovery_images(bundle)
        wanted = union([bundle, index.inventory()])
        how = check_access, depth, verification, whole, key is not None
        return cls(reader, bundle, index, wanted, run, *how)

    # -- one registry --------------------------------------------------------------------------

    def held(self, target: RegistryTarget, stated: Inventory | None = None) -> Inventory:
        """What `target` has of all that is wanted or `stated` and, before a delta, of its base.

        Raises:
            MissingBaseError: it does not have all that the delta leaves to its base.
        """
        reader = self.reader
        if not (reader.bases or self.whole):
            return target.held(self.wanted, self.depth)
        held = target.held(union([stated or Inventory(), self.wanted, reader.needed]))
        missing = missing_findings(self.bundle, reader.needed, held, target.name)
        if missing:
            raise MissingBaseError(
                f"{target.name} lacks {len(missing)} of the manifests and blobs that "
                f"{reader.name}, a delta, leaves to its base (inventory "
                f"{', '.join(map(str, reader.bases))}); push that base first, or a complete "
                "bundle; nothing was written",
                [finding.located for finding in missing],
            )
        return held

    def look(self, tree: RegistryTree) -> PublicationState:
        """What a registry states."""
        tree.client.ping()  # one clear answer about name, TLS and login, before many ask at once
        if not self.whole:
            self.run.on_event(PhaseStarted("comparing with the registry"))
        return read_state(tree, self.run)

    def goal(self, tree: RegistryTree, state: PublicationState, above: int = 0) -> PushGoal:
        """What all are to state if `tree` decides, in a generation above `above`.

        Raises:
            MissingBaseError: it lacks what a delta leaves out.
            DowngradeError: what it has is newer.
        """
        target = tree.target(self.run)
        before = state.stated
        held = self.held(target, before if self.whole else None)
        check_downgrade(tree, state, held, self.wanted, strict=self.strict, run=self.run)
        signs = tree.keys.sign is not None
        statement = next_statement(
            state, self.wanted, held, tool=tool_name(), above=above, signs=signs
        )
        if statement is not None:
            goal = Goal.of(statement, tree.keys)
            inventory = statement.inventory if self.whole else self.wanted
            return PushGoal(tree, held, inventory, goal.published, goal, new=True)
        assert state.newest is not None, "where nothing is stated, the statement is new"
        if not self.whole:
            return PushGoal(tree, held, self.wanted, state.newest, None, new=False)
        goal = Goal(state.newest.statement, read_artifact(tree, state.newest))
        return PushGoal(tree, held, before, state.newest, goal, new=False)

    def bring(
        self,
        tree: RegistryTree,
        state: PublicationState,
        goal: PushGoal,
        others: Sequence[RegistryTree],
        run: Run,
    ) -> tuple[Plan, TransferReport]:
        """Bring a registry to the goal; `others` may give what the bundle lacks.

        Raises:
            DowngradeError: it does not lead, and what it has is newer; nothing was written to it.
            DeniedError: it may not be written to; nothing was.
            IncompleteError: something could not be brought, or is not there afterwards.
            ConflictError: somebody else set these tags or published something meanwhile.
        """
        target, leads = tree.target(run), tree is goal.lead
        held = goal.held if leads else target.held(goal.inventory)
        if not leads:  # the lead was asked before anything was written
            check_downgrade(tree, state, held, goal.inventory, strict=self.strict, run=run)
        plan = by_archive(make_plan(goal.inventory, held, stage=publication_stage))
        stated = state.pending is None and state.newest_digest == goal.published.digest
        # The lead publishes only what is new; an interrupted publication of its own is finished.
        stating = None if stated or (leads and not goal.new) else goal.statement
        places: list[Source | Holder] = [other.source() for other in others]
        places.append(Holder(tree.source(), held))
        source = FailoverSource(
            [self.reader, self.index, *places],
            goal.inventory,
            name=f"{self.reader.name} or another registry" if others else None,
            on_event=run.on_event,
        )
        publication = Publication(
            tree, state, stating, seen=held, finish_first=leads, verification=self.verification
        )
        try:
            if self.check_access:
                target.check_access(plan, *([REPOSITORY] if stating else []))
            report = publication.carry_out(
                plan,
                source,
                target,
                new_tags=publication.new_tags(plan, held),
                held=sum(goal.inventory.blob_sizes().values()) - plan.blob_bytes,
                run=run,
            )
        finally:
            target.release()
        if self.verification is Verification.ALL:
            self._check(tree, goal, run)
        return plan, report.done

    def finish(self, tree: RegistryTree, state: PublicationState, goal: PushGoal) -> PushReport:
        """Bring the only registry to its goal; errors as `bring`."""
        plan, done = self.bring(tree, state, goal, (), self.run)
        brought = tree.name, self.bundle, self.bundle.digest(), plan, done
        return PushReport(*brought, goal.published, goal.new, self.reader.bases, self.verification)

    def _check(self, tree: RegistryTree, goal: PushGoal, run: Run) -> None:
        """Ask a registry for everything that it states.

        Raises:
            IncompleteError: something is missing.
            ConflictError: it states something else by now.
        """
        found = observe(tree, goal.inventory, Depth.AUDIT, run=run.quietly())
        findings = findings_of(goal.inventory, found)
        if findings:
            raise IncompleteError(
                f"{tree.name}: {len(findings)} things are missing after the push; run it again"
                + listed(findings),
                (),
            )
        if statement_digest(tree) != goal.published.digest:
            raise ConflictError(
                f"{tree.name} states another inventory by now: another push, rollback or sync "
                "ran at the same time; run it again, one at a time"
            )

    # -- several -------------------------------------------------------------------------------

    def at_once(
        self,
        trees: Sequence[RegistryTree],
        work: Callable[[RegistryTree], Result],
        problems: _Problems,
    ) -> dict[str, Result]:
        """The results of `work` on all registries, by name; failures are put into `problems`."""
        results: dict[str, Result] = {}
        for tree, answer in zip(trees, ask_at_once(trees, work, run=self.run), strict=True):
            if isinstance(answer, MirrorError):
                problems[tree.name] = answer
            else:
                results[tree.name] = answer
        return results

    def first_goal(
        self, alive: list[RegistryTree], states: Mapping[str, PublicationState], problems: _Problems
    ) -> PushGoal | None:
        """What all of `alive` are to state; registries that prove dead are taken out of it."""
        ahead = sorted(alive[1:], key=lambda tree: -states[tree.name].generation)
        for lead in (*alive[:1], *ahead):
            state = states[lead.name]
            others = [states[tree.name] for tree in alive if tree is not lead]
            differing = [one for one in others if one.newest_digest != state.newest_digest]
            above = max((one.generation for one in differing), default=0)
            try:
                return self.goal(lead, state, above)
            except CancelledError:
                raise
            except MirrorError as err:
                problems[lead.name] = err
                alive.remove(lead)
        return None

    def bring_all(
        self,
        alive: Sequence[RegistryTree],
        states: Mapping[str, PublicationState],
        goal: PushGoal,
        problems: _Problems,
    ) -> dict[str, tuple[Plan, TransferReport]]:
        """Bring all of `alive` to the goal; what was done in those that are there."""
        first = sorted(alive, key=lambda tree: tree is not goal.lead)

        def bring(tree: RegistryTree) -> tuple[Plan, TransferReport]:
            run = self.run
            if len(alive) > 1:
                run = run.heard_by(side_by_side(run.on_event, tree.name))
            others = [other for other in first if other is not tree]
            return self.bring(tree, states[tree.name], goal, others, run)

        return self.at_once(alive, bring, problems)
