"""Publication: the one place where tags are set and removed.

A push deletes nothing, so whatever a tag names is complete at every moment, and the order of the
stages makes a tag turn after everything that it leads to. Images whose tags are new go by these
tags, as nothing leads to them yet. The new statement is announced before the first other tag turns
and stated after the last one (`mirror.sync.publication_state`), so whoever finds a publication
interrupted can finish it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType

from mirror.errors import (
    ConflictError,
    IncompleteError,
    RegistryError,
    RegistryNotFoundError,
)
from mirror.events import PhaseStarted, Warned
from mirror.layout import publication_stage, stands_alone
from mirror.oci import Digest
from mirror.run import Run, gather
from mirror.sync.content import Source, Target
from mirror.sync.inventory import Inventory
from mirror.sync.observe import Verification, check_blobs, check_manifests, check_tags
from mirror.sync.plan import (
    NewTags,
    Plan,
    PutTag,
    make_plan,
    new_tags,
    tags_of_steps,
    tags_only,
)
from mirror.sync.publication_state import (
    LATEST,
    PENDING,
    STAGED,
    PublicationState,
    Published,
    generation_tag,
    read_tips,
    statement_digest,
    tags_to_finish,
    write_reached,
)
from mirror.sync.removal import deletes_tags, remove_tags
from mirror.sync.statement import (
    REPOSITORY,
    SIGNATURE,
    Artifact,
    Statement,
    StatementKeys,
    put_artifact,
)
from mirror.sync.transfer import Independence, Interim, TransferReport, transfer
from mirror.sync.tree import RegistryTree

# -- turning tags ----------------------------------------------------------------------------------


class Step(Enum):
    """What a publication does, in this order."""

    CHECK_TAGS = auto()
    """Check that nobody has set the tags that will turn since the operation looked at them."""
    CHECK_STATE = auto()
    """Check that nobody has published anything since the operation began."""
    FINISH = auto()
    """Bring an interrupted publication to its end."""
    ANNOUNCE = auto()
    """Let `pending` name the statement that the tags are about to turn to."""
    RETRACT = auto()
    """Remove the present statement, which the tags are about to contradict."""
    TURN = auto()
    """Turn the tags, stage by stage: images, versions, channels, indexes."""
    REMOVE = auto()
    """Remove tags, the last stage first."""
    STATE = auto()
    """Let the generation's tag and, last of all, `latest` name the statement."""


@dataclass(frozen=True, slots=True)
class Goal:
    """The statement that holds when all tags have turned, as a value and as it lies there."""

    statement: Statement
    artifact: Artifact

    @classmethod
    def of(cls, statement: Statement, keys: StatementKeys | None = None) -> Goal:
        """The goal of a statement of our own, signed by `keys`. Keep it: the layer may be large."""
        return cls(statement, statement.artifact(keys))

    @property
    def published(self) -> Published:
        """What a registry states that has reached it."""
        manifest = self.artifact.manifest
        return Published(manifest.digest, self.statement, SIGNATURE in manifest.annotations)


@dataclass(frozen=True, slots=True)
class PublicationReport:
    """What a publication did.

    `removed` are (repository, tag), sorted. `stated` is what the registry states by this
    publication, None where it stated nothing; `retracted`, whether its statement was removed.
    """

    done: TransferReport
    removed: tuple[tuple[str, str], ...] = ()
    stated: Published | None = None
    retracted: bool = False


@dataclass(frozen=True, slots=True)
class Publication:
    """One change of what the tags of a registry name, with the statement that goes with it.

    Attributes:
        state: what the registry stated when the operation began.
        goal: what it is to state; None where tags turn and the statement stays as it is.
        seen: what the tags named when the operation looked at them. Tags that somebody else has
            set since then stop it. None: they turn whatever they name.
        finish_first: an interrupted publication is brought to its end before this one; else this
            one takes its place.
        removals: tags that are to go when all others have turned, which takes a goal.
        retracts: where tags turn and no statement will cover them, the present one is removed.
        verification: how much of what the registry accepts it is asked for, before others need it.
        heard: whether the run's listener gets an event for each item that is carried.
        announced: called before the first tag turns that is not new; a ConflictError withdraws the
            announcement.

    Raises:
        ValueError: there are removals and no goal.
    """

    tree: RegistryTree
    state: PublicationState
    goal: Goal | None = None
    seen: Inventory | None = None
    finish_first: bool = False
    removals: tuple[PutTag, ...] = ()
    retracts: bool = False
    verification: Verification = Verification.NONE
    heard: bool = True
    announced: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        if self.removals and self.goal is None:
            raise ValueError("tags are removed on the way to a statement, and there is none")

    def steps(self, *, complete: bool = True, turns: bool = True) -> tuple[Step, ...]:
        """What to do, in order. Pure.

        `complete` says whether all content is there, `turns` whether any tag is going to turn.
        """
        finishes = self.finish_first and self.state.pending is not None
        states = self.goal is not None and complete
        wanted = {
            Step.CHECK_TAGS: self.seen is not None,
            Step.CHECK_STATE: states or finishes,
            Step.FINISH: finishes,
            Step.ANNOUNCE: states,
            Step.RETRACT: self.retracts and turns and not states,
            Step.TURN: turns,
            Step.REMOVE: states and bool(self.removals),
            Step.STATE: states,
        }
        return tuple(step for step in Step if wanted[step])

    def new_tags(self, plan: Plan, held: Inventory) -> NewTags:
        """The tags that may be set along with their manifests: see `mirror.sync.plan.new_tags`.

        There are none after an interrupted publication, whose tags turn before those of this one.
        """
        return {} if self.state.pending else new_tags(plan, held, stands_alone)

    def carry_out(
        self,
        plan: Plan,
        source: Source,
        target: Target,
        *,
        new_tags: NewTags = MappingProxyType({}),
        independence: Independence | None = None,
        before_tags: Callable[[Interim], None] = lambda _interim: None,
        held: int = 0,
        run: Run,
    ) -> PublicationReport:
        """Carry the content of `plan` from `source` to `target`, then turn its tags.

        With `independence` everything is carried and turned that does not depend on what failed,
        and the goal is stated only if nothing failed. `new_tags` are set with their manifests, as
        nobody has seen them and they promise nothing else. `before_tags` is called before the first
        other step that others can see, and may raise. `held` is for listeners, as in `transfer`.

        Raises:
            IncompleteError: some content could not be brought, or something that an interrupted
                publication promised is gone; no tag names what is missing.
            ConflictError: somebody else set these tags or published something meanwhile.
            CancelledError: the run was stopped; the same operation again completes it.
        """
        new = dict.fromkeys(itertools.chain(*new_tags.values()))
        others = [step for step in itertools.chain(*plan.tags) if step not in new]
        checks, retracted = self.verification is not Verification.NONE, False

        def before_manifests() -> None:
            if checks:
                check_blobs(self.tree, plan.blobs, run)
            if new and self.seen is not None:
                _check_seen(self.tree, _in_known_repositories(self.tree, new, run), self.seen, run)
            if new and self.goal is not None:
                check_state(self.tree, self.state, self.goal.published.digest)
                artifact = self.goal.artifact
                put_artifact(self.tree.client, self.tree.locate(REPOSITORY), artifact, STAGED)

        def prepare(interim: Interim) -> None:
            nonlocal retracted
            before_tags(interim)
            if checks:
                put = (one for one in interim.manifests if one not in new_tags)
                check_manifests(self.tree, put, run)
                check_tags(self.tree, new, run)
            steps = self.steps(complete=not interim.failures, turns=interim.turns)
            for step in itertools.takewhile(lambda step: step.value < Step.TURN.value, steps):
                self._prepare(step, others, run)
            retracted = Step.RETRACT in steps and retract(self.tree, self.state, run)

        done = transfer(
            plan,
            source,
            target,
            new_tags=new_tags,
            before_manifests=before_manifests,
            before_tags=prepare,
            independence=independence,
            held=held,
            run=run if self.heard else run.quietly(),
        )
        if checks:
            check_tags(self.tree, others, run)
        removed: tuple[tuple[str, str], ...] = ()
        if self.goal is None or done.failures:
            return PublicationReport(done, retracted=retracted)
        if self.removals:
            removed = self._remove(self.goal, run)
        _state(self.tree, self.goal.published)
        return PublicationReport(done, removed, self.goal.published)

    def _prepare(self, step: Step, tags: Sequence[PutTag], run: Run) -> None:
        match step:
            case Step.CHECK_TAGS if self.seen is not None:
                _check_seen(self.tree, tags, self.seen, run)
            case Step.CHECK_STATE:
                # Without a goal this only finishes, which another may have done meanwhile.
                goal = self.goal.published if self.goal else self.state.pending
                check_state(self.tree, self.state, goal.digest if goal else None)
            case Step.FINISH if self.state.pending is not None:
                _finish(self.tree, self.state, self.state.pending, run)
            case Step.ANNOUNCE if self.goal is not None:
                announce(self.tree, self.goal.artifact)
                try:
                    self.announced()
                except ConflictError:
                    self._withdraw(self.goal, run)
                    raise

    def _withdraw(self, goal: Goal, run: Run) -> None:
        """Let `pending` name again what it did, or the present statement, which says as much."""
        client, repository = self.tree.client, self.tree.locate(REPOSITORY)
        before = self.state.tips[0] or self.state.tips[1]
        try:
            if before is None:
                client.delete_manifest(repository, goal.artifact.manifest.digest)
            else:
                client.put_manifest(repository, PENDING, client.manifest(repository, before))
        except RegistryError as err:
            run.on_event(Warned(f"{self.tree.name} goes on announcing what was given up: {err}"))

    def _remove(self, goal: Goal, run: Run) -> tuple[tuple[str, str], ...]:
        """Remove what is to go, where the registry can delete a tag and keep its manifest."""
        if not deletes_tags(self.tree, goal.statement.inventory.digest().encoded):
            return ()
        run.on_event(PhaseStarted(f"removing {len(self.removals)} tags"))
        return remove_tags(self.tree, self.removals, run=run)


def retract(tree: RegistryTree, state: PublicationState, run: Run) -> bool:
    """Remove what `latest` named when `state` was read, and say whether it is gone.

    What cannot be removed is warned of.
    """
    current = state.current
    if current is None or state.tips[1] != current.digest:
        return False
    try:
        with suppress(RegistryNotFoundError):  # gone, by a request whose answer was lost
            tree.client.delete_manifest(tree.locate(REPOSITORY), current.digest)
    except RegistryError as err:
        run.on_event(Warned(f"{tree.name} goes on stating what it does not have: {err}"))
        return False
    return True


# -- the single steps ------------------------------------------------------------------------------


def _in_known_repositories(tree: RegistryTree, steps: Collection[PutTag], run: Run) -> list[PutTag]:
    """The `steps` in repositories that the registry knows; in others nobody has set a tag."""
    paths = sorted({step.repository for step in steps})

    def is_known(path: str) -> bool:
        try:
            tree.client.tags(tree.locate(path))
        except RegistryNotFoundError:
            return False
        return True

    known = dict(zip(paths, gather(paths, is_known, run=run), strict=True))
    return [step for step in steps if known[step.repository]]


def _check_seen(tree: RegistryTree, steps: Sequence[PutTag], seen: Inventory, run: Run) -> None:
    """Check that the tags of `steps` name what they named when a plan was made for `seen`.

    Else what they name now would be forgotten, and no rollback could put it back.
    """
    now = tree.target(run).held(tags_only(tags_of_steps(steps)))
    for step in steps:
        before, after = (one.repository(step.repository).tags.get(step.tag) for one in (seen, now))
        # A tag that names what it should by now is one whose lost manifest has come back.
        if after not in (None, before, step.digest):
            raise ConflictError(
                f"{tree.name}: {step.repository or '/'}:{step.tag} was changed by somebody else "
                f"meanwhile: it named {before or 'nothing'}, and names {after} now; "
                "no tag was changed: run it again, what has arrived is not sent twice"
            )


def check_state(tree: RegistryTree, state: PublicationState, goal: Digest | None = None) -> None:
    """Check that nobody has published anything since `state` was read, `goal` excepted.

    Else the next statement would leave out what the other publication brought.

    Raises:
        ConflictError: somebody has.
    """
    now = read_tips(tree)
    if now == state.tips or (goal is not None and now[0] == goal):
        return
    raise ConflictError(
        f"{tree.client.host}/{tree.locate(REPOSITORY)}: another push, rollback, sync or prune "
        "published something since this one began; no tag was changed: run it again, one at a "
        "time; what has arrived is not sent twice"
    )


def _finish(tree: RegistryTree, state: PublicationState, pending: Published, run: Run) -> None:
    """Bring the interrupted publication of `pending` to its end."""
    number = pending.statement.generation
    run.on_event(PhaseStarted(f"finishing generation {number}, whose publication was interrupted"))
    target = tree.target(run)
    wanted = tags_only(tags_to_finish(state))
    plan = make_plan(wanted, target.held(wanted), stage=publication_stage)
    try:
        transfer(plan, tree.source(), target, run=run.quietly())
    except IncompleteError as err:
        raise IncompleteError(
            f"{tree.name}: generation {number}, whose publication was interrupted, cannot be "
            "finished; push its bundle again, or turn it back by `mirror rollback`",
            err.failures,
        ) from err
    _state(tree, pending)


def announce(tree: RegistryTree, artifact: Artifact) -> None:
    """Store a statement and let `pending` name it."""
    put_artifact(tree.client, tree.locate(REPOSITORY), artifact, artifact.manifest.digest, PENDING)


def _state(tree: RegistryTree, published: Published) -> None:
    """Let `latest` name a statement that was announced: every tag has turned.

    Raises:
        ConflictError: somebody else announced another one meanwhile.
    """
    repository, statement = tree.locate(REPOSITORY), published.statement
    if statement_digest(tree, PENDING) != published.digest:
        raise ConflictError(
            f"{tree.client.host}/{repository}: another push, rollback or sync began while this "
            "one ran; run it again, one at a time"
        )
    manifest = tree.client.manifest(repository, published.digest)
    write_reached(tree, published)
    # `latest` last: whoever finds it finds the history complete.
    tags = (generation_tag(statement.generation), statement.inventory.digest().encoded, LATEST)
    for tag in tags:
        tree.client.put_manifest(repository, tag, manifest)
