"""Rollback: let all tags name again what they named in an earlier generation.

Nothing was deleted since, so every tag leads to something complete at every moment, in whatever
order the tags turn. The order is that of a push: images, versions, channels, indexes. What an
earlier generation's channels lead to is tagged as it was before they turn back. Tags that the
earlier generation did not have go last, in reverse order: indexes, then channels, then the versions
that those could lead to.

The result is a new generation: numbers only rise, so that replicas follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from mirror.documents import document
from mirror.errors import (
    IncompleteError,
    InputError,
    IntegrityError,
    InvalidManifestError,
    MirrorError,
    NotFoundError,
    StatementError,
    counted,
)
from mirror.events import PhaseStarted, Warned
from mirror.layout import publication_stage, tool_name
from mirror.oci import Digest
from mirror.run import Run, for_each
from mirror.sync import (
    Inventory,
    InventoryBuilder,
    ManifestNode,
    PutTag,
    RepositoryContent,
    make_plan,
)
from mirror.sync.content import graph
from mirror.sync.plan import (
    Tags,
    differing,
    laid_over,
    tags_of,
    tags_of_steps,
    tags_only,
    unaccounted,
)
from mirror.sync.publication import Goal, Publication
from mirror.sync.publication_state import (
    PublicationState,
    generations,
    read_artifact,
    read_generation,
    read_state,
)
from mirror.sync.statement import Statement, following, state_before, succeed
from mirror.sync.tree import RegistryTarget, RegistryTree

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class TagTurn:
    """A tag that names `before` (None: nothing) and is to name `after`."""

    repository: str
    tag: str
    before: Digest | None
    after: Digest

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return document(self, "repository", "tag", "before", "after")


@dataclass(frozen=True, slots=True)
class RollbackReport:
    """What a rollback did or, if `dry_run`, would do.

    `replaced` is the generation that was there or, if `interrupted`, on its way; `restored` is the
    one that is back, stated as `generation`. `turned` are the tags that name something else now;
    `extras` are tags that only later generations have, of which `removed` are gone.
    """

    target: str
    replaced: int
    restored: int
    generation: int
    interrupted: bool
    turned: tuple[TagTurn, ...]
    extras: tuple[tuple[str, str], ...]
    removed: tuple[tuple[str, str], ...]
    inventory: Digest
    dry_run: bool

    @property
    def remaining(self) -> tuple[tuple[str, str], ...]:
        """Extras that are there still."""
        gone = set(self.removed)
        return tuple(one for one in self.extras if one not in gone)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        numbers = ("target", "dry_run", "replaced", "restored", "generation", "interrupted")
        return {
            **document(self, *numbers, "inventory", "turned"),
            "extras": [f"{path}:{tag}" for path, tag in self.extras],
            "removed": [f"{path}:{tag}" for path, tag in self.removed],
        }


def rollback(
    tree: RegistryTree, *, to: int | None = None, dry_run: bool = False, run: Run | None = None
) -> RollbackReport:
    """Put the tags back to what they named when the generation after `to` began.

    That is what generation `to` stated, and what other tools had set besides. 0 is the state before
    the first generation, of the tags that a later one set. Without `to` it is the generation before
    the current one; after an interrupted publication it is the current one, and an interrupted
    rollback is finished.

    First the registry is asked for everything that the turning tags will lead to. Tags that came
    later are deleted where the registry can delete a tag and keep its manifest; elsewhere they
    stay.

    Raises:
        InputError: there is no such generation to go back to.
        NotFoundError: the registry states no inventory.
        IncompleteError: something of that generation is not there any more; nothing was changed.
        ConflictError: somebody else changed the same registry meanwhile.
        CancelledError: the run was stopped; running it again completes it.
    """
    run = Run.of(run)
    tree = tree.within(run)
    tree.client.ping()
    state = read_state(tree, run)
    back = _Rollback.to_generation(to, tree, state, run)
    wanted = back.wanted()
    turning: Tags = {}  # judging by what the registry states
    for known in state.known_tags():
        turning = laid_over(turning, differing(tags_of(wanted), known))
    count = sum(map(len, turning.values()))
    run.on_event(PhaseStarted(f"checking what {count} tags are to lead to"))
    back.refuse_if_lost(wanted, turning, untagged=True)
    # The tags themselves are looked at last, so that they turn right after.
    run.on_event(PhaseStarted("comparing tags"))
    tags = tags_only(tags_of(wanted))
    held = back.target.held(tags)
    plan = make_plan(tags, held, stage=publication_stage)
    steps = [step for stage in plan.tags for step in stage]
    if surprising := differing(tags_of_steps(steps), turning):
        back.refuse_if_lost(wanted, surprising)
    extras = back.extras(tags_of(wanted))
    statement = back.statement(wanted, tags_of(held))
    report = RollbackReport(
        tree.name,
        back.replaced.generation,
        back.to,
        statement.generation if statement else back.replaced.generation,
        state.pending is not None,
        tuple(
            TagTurn(path, step.tag, held.repository(path).tags.get(step.tag), step.digest)
            for path, step in ((step.repository, step) for step in steps)
        ),
        tuple((step.repository, step.tag) for step in extras),
        (),
        wanted.digest(),
        dry_run,
    )
    finished = statement is None and state.pending is None and not plan and not extras
    if dry_run or finished:
        return report
    publication = Publication(
        tree,
        state,
        # A repair that changes no statement publishes the one that holds once more.
        Goal.of(statement, tree.keys) if statement else back.restated(),
        seen=held if surprising else None,  # to check what those lead to took its time
        removals=extras,
        heard=False,
    )
    run.on_event(PhaseStarted(f"turning {counted(plan.tag_count, 'tag')} back"))
    done = publication.carry_out(plan, tree.source(), back.target, run=run)
    return replace(report, removed=done.removed)


@dataclass(frozen=True, slots=True)
class _Rollback:
    """A rollback to generation `to`, in place of the statement `replaced`.

    `base` is what generation `to` states (nothing for 0), `former` what tags named besides when
    the next generation began.
    """

    tree: RegistryTree
    state: PublicationState
    run: Run
    to: int
    base: Inventory
    former: Tags
    replaced: Statement

    @classmethod
    def to_generation(
        cls, to: int | None, tree: RegistryTree, state: PublicationState, run: Run
    ) -> _Rollback:
        """Decide which generation comes back, and read what is known about it."""
        newest = state.newest
        if newest is None:
            raise NotFoundError(
                f"registry {tree.name} states no inventory, so there is nothing to go back to; a "
                "push writes one"
            )
        kept = generations(tree)
        current = state.current.statement.generation if state.current else 0
        to = _default_target(state, current, kept) if to is None else to
        top = newest.statement.generation
        if to >= top:
            raise InputError(
                f"generation {to} is not before the current one, {top}; `mirror history` lists them"
            )
        base = Inventory()
        if to > 0:
            found = state.current if to == current else read_generation(tree, to)
            if found is None and to in kept:
                raise StatementError(
                    f"registry {tree.name} lists generation {to} and does not give it"
                )
            if found is None:
                raise InputError(
                    f"registry {tree.name} keeps no generation {to}, but "
                    + (", ".join(map(str, kept[-20:])) or "none at all")
                )
            base = found.statement.inventory
        numbers = [number for number in kept if to < number < top]
        later = _later(tree, numbers, newest.statement, run)
        return cls(tree, state, run, to, base, state_before(base, later), newest.statement)

    @property
    def target(self) -> RegistryTarget:
        """Where tags turn."""
        return self.tree.target(self.run)

    def wanted(self) -> Inventory:
        """Everything that the registry held then; what other tools had set is read from it."""
        others = differing(self.former, tags_of(self.base))
        if not others:
            return self.base
        builder = InventoryBuilder()
        builder.add_inventory(tags_only(others))
        source = self.tree.source()

        def nodes_below(path: str, root: Digest) -> list[ManifestNode]:
            fetch = partial(source.manifest, path)
            return [*map(ManifestNode.of, graph(fetch(root), fetch))]

        roots = {(path, digest) for path, tags in others.items() for digest in tags.values()}
        graphs, lost = self._read(sorted(roots), nodes_below)
        if lost:
            raise self._incomplete(lost)
        for path, nodes in graphs:
            for node in nodes:
                builder.add_manifest(path, node)
        return succeed(self.base, builder.build())

    def statement(self, wanted: Inventory, held: Tags) -> Statement | None:
        """What the registry is to state; None if `replaced` states it already."""
        former = unaccounted(held, *self.state.own_tags())
        same = wanted == self.replaced.inventory
        if self.state.pending is None:
            if same and not former:
                return None
        else:
            if same and self.replaced.restores == self.to:
                return None  # the same rollback, interrupted: it goes on
            former = laid_over(former, self.replaced.former)
        number = following(self.state.generation)
        return Statement(wanted, number, former, restores=self.to, tool=tool_name())

    def restated(self) -> Goal:
        """The statement that is there, as it is there."""
        assert self.state.newest is not None, "a rollback has something to replace"
        return Goal(self.replaced, read_artifact(self.tree, self.state.newest))

    def refuse_if_lost(self, wanted: Inventory, turning: Tags, *, untagged: bool = False) -> None:
        """Check that everything is there that `turning` tags will lead to; with `untagged` also
        everything that no tag leads to.

        What the current statement names in the same repository counts as there. The manifests that
        tags will name are read, so that nothing but tags is left to do when these turn.
        """
        current = self.state.current
        stated = current.statement.inventory if current else Inventory()
        manifests: list[tuple[str, Digest]] = []
        blobs: dict[str, RepositoryContent] = {}
        for path, content in wanted.repositories.items():
            trusted = stated.repository(path)
            named = set(turning.get(path, {}).values())
            loose = content.manifests.keys() - content.reachable(content.tags.values())
            needed = content.reachable(named | loose if untagged else named)
            manifests += ((path, one) for one in sorted(named | needed - trusted.manifests.keys()))
            sizes = {
                blob.digest: blob.size
                for digest in needed
                for blob in content.manifests[digest].blobs
                if blob.digest not in trusted.blobs
            }
            if sizes:
                blobs[path] = RepositoryContent(blobs=sizes)
        lost = self._read(manifests, self.tree.source().manifest)[1]
        gone = NotFoundError("is not there any more")
        needed_blobs = Inventory(blobs)
        for step in make_plan(needed_blobs, self.target.held(needed_blobs)).blobs:
            lost += [(f"blob {step.digest} in {path or '/'}", gone) for path in step.into]
        if lost:
            raise self._incomplete(sorted(lost, key=lambda one: one[0]))

    def extras(self, wanted: Tags) -> tuple[PutTag, ...]:
        """Tags that later generations added, in the order of their removal: channels first.

        Tags that somebody else has set to something else meanwhile are left out.
        """
        brought: dict[tuple[str, str], set[Digest]] = {}
        for known in self.state.own_tags():
            for path, tags in known.items():
                for tag, digest in tags.items():
                    if tag not in wanted.get(path, {}):
                        brought.setdefault((path, tag), set()).add(digest)
        asked = tags_of_steps([PutTag(*name, min(digests)) for name, digests in brought.items()])
        steps = [
            PutTag(path, tag, digest)
            for path, content in self.target.held(tags_only(asked)).repositories.items()
            for tag, digest in content.tags.items()
            if digest in brought[path, tag]
        ]
        return tuple(sorted(steps, key=_last_first))

    def _read(
        self, items: Sequence[tuple[str, Digest]], read: Callable[[str, Digest], Result]
    ) -> tuple[list[tuple[str, Result]], list[tuple[str, MirrorError]]]:
        """The results of `read` by repository, and which of the manifests are lost or damaged."""
        found: list[tuple[str, Result]] = []
        lost: list[tuple[str, MirrorError]] = []
        failure: MirrorError | None = None
        with closing(for_each(items, lambda one: read(*one), run=self.run)) as outcomes:
            for (path, digest), outcome in outcomes:
                if isinstance(outcome, NotFoundError | IntegrityError | InvalidManifestError):
                    lost.append((f"manifest {path or '/'}@{digest}", outcome))
                elif isinstance(outcome, MirrorError):
                    failure = failure or outcome
                else:
                    found.append((path, outcome))
        if failure is not None:
            raise failure  # not inside the loop, which would cancel the run
        return found, lost

    def _incomplete(self, lost: Sequence[tuple[str, MirrorError]]) -> IncompleteError:
        return IncompleteError(
            f"{self.tree.name} does not hold all of generation {self.to} any more, so no tag was "
            "changed; push the bundle of that release to bring it back. "
            f"{len(lost)} things are missing",
            lost,
        )


def _last_first(step: PutTag) -> tuple[int, str, str]:
    return (-publication_stage(step.repository, step.tag), step.repository, step.tag)


def _default_target(state: PublicationState, current: int, kept: Sequence[int]) -> int:
    """The generation that a rollback without `to` puts back."""
    if state.pending is not None:
        restores = state.pending.statement.restores
        return current if restores is None else restores
    before = [number for number in kept if number < current]
    if not before:
        raise InputError(
            f"there is no generation before {current}; with --to 0 tags go back to what they named "
            "before the first one"
        )
    return before[-1]


def _later(
    tree: RegistryTree, numbers: Sequence[int], newest: Statement, run: Run
) -> Iterator[Statement]:
    """The statements of `numbers`, one in memory at a time, and `newest`."""
    for number in numbers:
        try:
            found = read_generation(tree, number)
        except StatementError as err:
            run.on_event(Warned(f"{err}; what other tools had set before it cannot be put back"))
            continue
        if found is not None:
            yield found.statement
    yield newest
