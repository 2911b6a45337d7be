"""Publication: the one place where tags are set and removed.

A push deletes nothing, so whatever a tag names is complete at every moment, and the order of the
stages makes a tag turn after everything that it leads to. The new statement is announced before the
first tag turns and stated after the last one (`mirror.sync.publication_state`), so whoever finds a
publication interrupted can finish it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import Enum, auto
from itertools import groupby

from mirror.errors import (
    ConflictError,
    IncompleteError,
    MirrorError,
    RegistryError,
    RegistryNotFoundError,
    UnreachableError,
)
from mirror.events import PhaseStarted, Warned
from mirror.layout import publication_stage
from mirror.oci import Digest
from mirror.run import Run, for_each
from mirror.sync.content import Source, Target
from mirror.sync.inventory import Inventory
from mirror.sync.plan import (
    Plan,
    PutTag,
    TagStage,
    make_plan,
    tags_of_steps,
    tags_only,
)
from mirror.sync.publication_state import (
    LATEST,
    PENDING,
    PublicationState,
    Published,
    generation_tag,
    read_tips,
    statement_digest,
    tags_to_finish,
    write_reached,
)
from mirror.sync.statement import (
    REPOSITORY,
    SIGNATURE,
    Artifact,
    Statement,
    StatementKeys,
    make_artifact,
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
        heard: whether the run's listener gets an event for each item that is carried.
        announced: called before the first tag turns; a ConflictError withdraws the announcement.

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

    def carry_out(
        self,
        plan: Plan,
        source: Source,
        target: Target,
        *,
        independence: Independence | None = None,
        before_tags: Callable[[Interim], None] = lambda _interim: None,
        after_tags: Callable[[], None] = lambda: None,
        held: int = 0,
        run: Run,
    ) -> PublicationReport:
        """Carry the content of `plan` from `source` to `target`, then turn its tags.

        With `independence` everything is carried and turned that does not depend on what failed,
        and the goal is stated only if nothing failed. `before_tags` is called before the first
        step that others can see, `after_tags` when all have turned and nothing is stated yet; both
        may raise. `held` is for listeners, as in `transfer`.

        Raises:
            IncompleteError: some content could not be brought, or something that an interrupted
                publication promised is gone; no tag names what is missing.
            ConflictError: somebody else set these tags or published something meanwhile.
            CancelledError: the run was stopped; the same operation again completes it.
        """
        retracted = False

        def prepare(interim: Interim) -> None:
            nonlocal retracted
            before_tags(interim)
            steps = self.steps(complete=not interim.failures, turns=interim.turns)
            for step in itertools.takewhile(lambda step: step.value < Step.TURN.value, steps):
                self._prepare(step, plan, run)
            retracted = Step.RETRACT in steps and retract(self.tree, self.state, run)

        done = transfer(
            plan,
            source,
            target,
            before_tags=prepare,
            independence=independence,
            held=held,
            run=run if self.heard else run.quietly(),
        )
        after_tags()
        removed: tuple[tuple[str, str], ...] = ()
        if self.goal is None or done.failures:
            return PublicationReport(done, retracted=retracted)
        if self.removals:
            removed = self._remove(self.goal, run)
        _state(self.tree, self.goal.published)
        return PublicationReport(done, removed, self.goal.published)

    def _prepare(self, step: Step, plan: Plan, run: Run) -> None:
        match step:
            case Step.CHECK_TAGS if self.seen is not None:
                _check_tags(self.tree, plan, self.seen, run)
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


def _check_tags(tree: RegistryTree, plan: Plan, seen: Inventory, run: Run) -> None:
    """Check that the tags of `plan` name what they named when it was made for `seen`.

    Else what they name now would be forgotten, and no rollback could put it back.
    """
    steps = [step for steps in plan.tags for step in steps]
    now = tree.target(run).held(tags_only(tags_of_steps(steps)))
    for step in steps:
        before, after = (one.repository(step.repository).tags.get(step.tag) for one in (seen, now))
        # A tag that names what it should by now is one whose lost manifest has come back.
        if after not in (None, before, step.digest):
            raise ConflictError(
                f"{tree.name}: {step.repository or '/'}:{step.tag} was changed by somebody else "
                f"meanwhile: it named {before or 'nothing'}, and names {after} now; "
                "no tag was set: run it again, what has arrived is not sent twice"
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


# -- removing tags ---------------------------------------------------------------------------------

TRIAL = make_artifact("application/vnd.deckhouse.mirror.probe.v1")
"""The artifact of our own on which `deletes_tags` tries what a registry does."""


def deletes_tags(tree: RegistryTree, tag: str) -> bool:
    """Whether the registry deletes a tag when asked to, and keeps the manifest that it named.

    Most registries that cannot refuse, but some would delete the manifest, with all its other
    tags. So it is tried on a manifest of our own, beside the statements, under `tag`. Where it
    cannot be deleted, `tag` goes on naming that manifest: pass one that is about to be set anyway.
    """
    client, repository, trial = tree.client, tree.locate(REPOSITORY), TRIAL.manifest
    put_artifact(client, repository, TRIAL, tag)
    try:
        with suppress(RegistryNotFoundError):  # gone, by a request whose answer was lost
            client.delete_tag(repository, tag)
        kept = client.resolve(repository, trial.digest) is not None
        gone = client.resolve(repository, tag) is None
    except UnreachableError:
        raise
    except RegistryError:
        return False
    finally:
        with suppress(RegistryError):  # a few bytes, where even that is not allowed
            client.delete_manifest(repository, trial.digest)
    return kept and gone


def remove_tags(
    tree: RegistryTree, tags: Iterable[PutTag], *, stage: TagStage = publication_stage, run: Run
) -> tuple[tuple[str, str], ...]:
    """Delete tags of a registry that `deletes_tags`, the last stage first.

    Returns the (repository, tag) of each that is gone, sorted; a warning names each other one.

    Raises:
        CancelledError: the run was stopped.
    """

    def drop(step: PutTag) -> None:
        delete_tag(tree, step.repository, step.tag)

    def stage_of(step: PutTag) -> int:
        return stage(step.repository, step.tag)

    gone: list[tuple[str, str]] = []
    for _, steps in groupby(sorted(tags, key=stage_of, reverse=True), stage_of):
        with closing(for_each(list(steps), drop, run=run)) as outcomes:
            for step, outcome in outcomes:
                if isinstance(outcome, MirrorError):
                    name = f"{step.repository or '/'}:{step.tag}"
                    run.on_event(Warned(f"{tree.name}: tag {name} could not be removed: {outcome}"))
                else:
                    gone.append((step.repository, step.tag))
    return tuple(sorted(gone))


def delete_tag(tree: RegistryTree, path: str, tag: str) -> None:
    """Delete a tag of a registry that `deletes_tags`. One that is gone counts as deleted."""
    with suppress(RegistryNotFoundError):
        tree.client.delete_tag(tree.locate(path), tag)


_ATTEMPTS = 3
"""How often a tag is set and deleted again if the registry deletes its manifest and keeps it."""


def drop_tag(tree: RegistryTree, path: str, tag: str) -> None:
    """Delete a tag by way of a manifest of our own: no other manifest goes with it."""
    repository = tree.locate(path)
    # Nothing else names it, so that deleting it deletes this tag alone.
    stand_in = make_artifact(
        "application/vnd.deckhouse.mirror.removed-tag.v1",
        annotations={"io.deckhouse.mirror.removed-tag": f"{path}:{tag}"},
    )
    for attempt in range(1, _ATTEMPTS + 1):
        put_artifact(tree.client, repository, stand_in, tag)
        try:
            tree.client.delete_manifest(repository, stand_in.manifest.digest)
        except RegistryNotFoundError:
            # As above: deleted by a request that then failed, or whose answer was lost.
            if attempt == _ATTEMPTS and tag in tree.listed_tags(path):
                raise
        else:
            return
