"""Push into several registries at once, and count those that hold the whole release."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from mirror.bundle.delta import lacking
from mirror.bundle.reader import BundleReader
from mirror.bundle.verify import check_signature
from mirror.errors import CancelledError, ConflictError, IncompleteError, MirrorError
from mirror.events import PhaseStarted, Warned, side_by_side
from mirror.layout import TargetTree, publication_stage
from mirror.oci import Digest
from mirror.operations.pull import count, tool_name
from mirror.operations.push_plan import check_base
from mirror.registry import RegistryClient, UploadJournal
from mirror.release.discovery import discovery_images
from mirror.run import Run
from mirror.sync import (
    FailoverSource,
    Holder,
    Inventory,
    MemoryStore,
    TransferReport,
    make_plan,
    transfer,
    union,
)
from mirror.sync.artifact import Artifact
from mirror.sync.findings import findings_of, listed
from mirror.sync.observation import Depth
from mirror.sync.observe import observe
from mirror.sync.phase import check_unmoved, finish
from mirror.sync.publish import (
    Published,
    Standing,
    begin,
    check_unchanged,
    complete,
    read_standing,
    statement_digest,
)
from mirror.sync.registry import RegistrySource, RegistryTarget
from mirror.sync.statement import REPOSITORY, Statement
from mirror.sync.succession import next_statement
from mirror.sync.workers import for_each

Result = TypeVar("Result")

_Problems = dict[str, MirrorError]
"""Member → why it does not hold the release."""


@dataclass(frozen=True, slots=True)
class Member:
    """A registry that is to hold the release, and where in it.

    With a `journal` uploads to it that end with this process are continued by the next one.
    """

    client: RegistryClient
    tree: TargetTree
    journal: UploadJournal | None = None

    def within(self, run: Run) -> Member:
        """The same, every wait of which listens to `run`."""
        return replace(self, client=self.client.within(run))

    @property
    def name(self) -> str:
        """What a person calls it."""
        return str(self.tree.root)


@dataclass(frozen=True, slots=True)
class MemberReport:
    """What became of one registry: it holds the whole, or `problem` says why it does not."""

    target: str
    done: TransferReport | None
    problem: MirrorError | None

    def to_document(self) -> dict[str, Any]:
        """As JSON values."""
        done = self.done
        return {
            "target": self.target,
            "complete": self.problem is None,
            "uploaded": {"bytes": done.sent, "manifests": done.manifests, "tags": done.tags}
            if done
            else None,
            "problem": str(self.problem) if self.problem else None,
        }


@dataclass(frozen=True, slots=True)
class QuorumReport:
    """A push that at least `quorum` of its registries completed.

    `inventory` is the bundle's; `published` is what all that are complete state.
    """

    quorum: int
    inventory: Inventory
    digest: Digest
    published: Published
    new: bool
    members: tuple[MemberReport, ...]

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "quorum": self.quorum,
            "complete": sum(one.problem is None for one in self.members),
            "replicas": [one.to_document() for one in self.members],
            "inventory": str(self.digest),
            "published": {
                "generation": self.published.statement.generation,
                "inventory": str(self.published.statement.inventory.digest()),
                "digest": str(self.published.digest),
                "new": self.new,
            },
            **count(self.inventory),
        }


def push_to_all(
    reader: BundleReader,
    members: Sequence[Member],
    *,
    quorum: int | None = None,
    key: bytes | None = None,
    check_access: bool = True,
    run: Run | None = None,
) -> QuorumReport:
    """Bring all `members` to the state that the first one has when it holds the bundle too.

    They are worked on at the same time, each with `run.jobs` threads, straight from the bundle;
    what the bundle lacks of that state comes from whichever other member has it. What happens to
    one does not concern the others. If the first does not answer, the one that is ahead takes its
    part. When all tags of a member have turned, it is asked for everything that it states; it
    counts if nothing lacks. `quorum` of them must (all, if None). Unless `check_access` is False,
    the right to write is proved at each before the first byte goes there.

    Raises:
        SignatureError, DamagedBundleError: as `push` says; nothing was written.
        IncompleteError: fewer do; `failures` has every other one with its reason.
        CancelledError: `run` was stopped.
        ValueError: `quorum` is not between 1 and the number of members.
    """
    run = Run.of(run)
    quorum = len(members) if quorum is None else quorum
    if not 1 <= quorum <= len(members):
        raise ValueError(f"a quorum of {quorum} out of {len(members)}")
    if key is not None:
        check_signature(reader, key)
    bundle = reader.inventory()
    for notice in reader.contents.warnings():
        run.on_event(Warned(notice))
    members = [member.within(run) for member in members]
    work = _Work(reader, discovery_images(bundle), bundle, check_access, run)
    run.on_event(PhaseStarted(f"asking {len(members)} registries"))
    problems: _Problems = {}
    standings = work.at_once(members, work.survey, problems)
    for standing in standings.values():
        for notice in standing.notices:
            run.on_event(Warned(notice))
    alive = [member for member in members if member.name in standings]
    reports: Mapping[str, TransferReport] = {}
    goal = work.goal(alive, standings, problems)
    if goal is not None:
        reports = work.bring_all(alive, standings, goal, problems)
    if goal is None or len(reports) < quorum:
        holding = ", ".join(sorted(reports)) or "none"
        raise IncompleteError(
            f"{len(reports)} of {len(members)} registries hold the complete, checked inventory, "
            f"and {quorum} must; those that do: {holding}. The others:",
            [(member.name, problems[member.name]) for member in members if member.name in problems],
        )
    for name, problem in problems.items():
        run.on_event(Warned(f"{name} does not hold the release: {problem}"))
    return QuorumReport(
        quorum,
        bundle,
        bundle.digest(),
        Published(goal.artifact.manifest.digest, goal.statement),
        goal.new,
        tuple(
            MemberReport(member.name, reports.get(member.name), problems.get(member.name))
            for member in members
        ),
    )


@dataclass(frozen=True, slots=True)
class _Goal:
    """What all members are to state. `held` is what the `lead` had of it before."""

    lead: Member
    held: Inventory
    statement: Statement
    artifact: Artifact
    new: bool


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be carried, and how."""

    reader: BundleReader
    index: MemoryStore
    bundle: Inventory
    check_access: bool
    run: Run

    def at_once(
        self,
        members: Sequence[Member],
        work: Callable[[Member], Result],
        problems: _Problems,
    ) -> dict[str, Result]:
        """The results of `work` on all members, by name; those that fail go to `problems`."""

        def caught(member: Member) -> Result | MirrorError:
            try:
                return work(member)
            except CancelledError:
                raise
            except MirrorError as err:  # one that cannot be reached must not end the others
                return err

        results: dict[str, Result] = {}
        with closing(for_each(members, caught, run=self.run.with_jobs(len(members)))) as outcomes:
            for member, outcome in outcomes:
                if isinstance(outcome, MirrorError):
                    problems[member.name] = outcome
                else:
                    results[member.name] = outcome
        return results

    def survey(self, member: Member) -> Standing:
        """What a member states."""
        member.client.ping()
        return read_standing(member.client, member.tree.locate)

    def target(self, member: Member) -> RegistryTarget:
        """A member to write to."""
        name = f"registry {member.name}"
        return RegistryTarget(
            member.client,
            member.tree.locate,
            name,
            run=self.run,
            journal=member.journal,
        )

    def goal(
        self, alive: list[Member], standings: Mapping[str, Standing], problems: _Problems
    ) -> _Goal | None:
        """Decide what all of `alive` are to state; those that prove dead are taken out of it."""
        wanted = union([self.bundle, self.index.inventory()])
        ahead = sorted(alive[1:], key=lambda member: -standings[member.name].generation)
        for lead in (*alive[:1], *ahead):
            standing = standings[lead.name]
            before = standing.newest.statement.inventory if standing.newest else Inventory()
            try:
                held = self.target(lead).held(union([before, wanted, self.reader.needed]))
                check_base(self.reader, lacking(self.bundle, self.reader.needed, held, lead.name))
            except CancelledError:
                raise
            except MirrorError as err:
                problems[lead.name] = err
                alive.remove(lead)
                continue
            others = [standings[member.name] for member in alive if member is not lead]
            above = max((one.generation for one in others if _differs(one, standing)), default=0)
            statement = next_statement(standing, wanted, held, tool=tool_name(), above=above)
            if statement is None and standing.newest is not None:
                stated = standing.newest.statement
                return _Goal(lead, held, stated, stated.artifact(), new=False)
            assert statement is not None, "where nothing is stated, something new is"
            return _Goal(lead, held, statement, statement.artifact(), new=True)
        return None

    def bring_all(
        self,
        alive: Sequence[Member],
        standings: Mapping[str, Standing],
        goal: _Goal,
        problems: _Problems,
    ) -> dict[str, TransferReport]:
        """Bring all of `alive` to the goal; what was done in those that are there."""

        def bring(member: Member) -> TransferReport:
            run = self.run
            if len(alive) > 1:
                run = run.heard_by(side_by_side(run.on_event, member.name))
            return self.bring(member, alive, standings[member.name], goal, run)

        return self.at_once(alive, bring, problems)

    def bring(
        self,
        member: Member,
        alive: Sequence[Member],
        standing: Standing,
        goal: _Goal,
        run: Run,
    ) -> TransferReport:
        """Bring a member to the goal, and check that it is there.

        Raises:
            DeniedError: it may not be written to; nothing was.
            IncompleteError: something could not be brought, or is not there afterwards.
        """
        target, leads = self.target(member), member is goal.lead
        inventory, digest = goal.statement.inventory, goal.artifact.manifest.digest
        held = goal.held if leads else target.held(inventory)
        plan = make_plan(inventory, held, stage=publication_stage)
        stated = standing.pending is None and _newest_digest(standing) == digest

        def before_tags() -> None:
            check_unmoved(target, plan, held)
            if not stated:
                check_unchanged(member.client, member.tree.locate, standing, digest)
            if leads and goal.new:
                finish(
                    standing,
                    target,
                    stage=publication_stage,
                    run=run,
                )
            if not stated:
                begin(member.client, member.tree.locate, goal.artifact)

        others = [
            RegistrySource(other.client, other.tree.locate, f"registry {other.name}")
            for other in sorted(alive, key=lambda one: one is not goal.lead)
            if other is not member
        ]
        there = RegistrySource(target.client, target.locate, target.name)
        try:
            if self.check_access:
                target.check_access(plan, *([] if stated else [REPOSITORY]))
            done = transfer(
                plan,
                FailoverSource(
                    [self.reader, self.index, *others, Holder(there, held)], on_event=run.on_event
                ),
                target,
                run=run,
                before_tags=before_tags,
            )
        finally:
            target.release()
        if not stated:
            complete(member.client, member.tree.locate, goal.statement, digest)
        self.check(target, inventory, digest)
        return done

    def check(self, target: RegistryTarget, inventory: Inventory, digest: Digest) -> None:
        """Ask a member for everything that it states.

        Raises:
            IncompleteError: something is missing, or it states something else by now.
        """
        found = observe(target, inventory, Depth.AUDIT, run=self.run.quietly())
        findings = findings_of(inventory, found)
        if findings:
            raise IncompleteError(
                f"{target.name}: {len(findings)} things are missing after the push; run it again"
                + listed(findings),
                (),
            )
        if statement_digest(target.client, target.locate) != digest:
            raise ConflictError(
                f"{target.name} states another inventory by now: another push, rollback or sync "
                "ran at the same time; run it again, one at a time"
            )


def _differs(one: Standing, other: Standing) -> bool:
    """Whether two registries state different things."""
    return _newest_digest(one) != _newest_digest(other)


def _newest_digest(standing: Standing) -> Digest | None:
    return standing.newest.digest if standing.newest else None
