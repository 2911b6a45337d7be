"""Rollback: let all tags name again what they named in an earlier generation.

Nothing was deleted since, so every tag leads to something complete at every moment, in whatever
order they turn. The order is that of a push: images, versions, channels, the index of what exists.
Whatever an earlier generation's channels lead to is tagged as it was before they turn back.
Tags that the earlier generation did not have go last, and the other way round: first the index,
then channels, then the versions that those could lead to.

The state that comes of it is a new generation: numbers only rise, so that replicas follow.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from mirror.errors import IncompleteError, InputError, MirrorError, NotFoundError, StatementError
from mirror.events import OnEvent, PhaseStarted, Warned
from mirror.events import ignore as ignore_events
from mirror.oci import Digest
from mirror.operations.pull import tool_name
from mirror.registry import RegistryClient
from mirror.release.tree import TargetTree, publication_stage
from mirror.sync import Inventory, InventoryBuilder, ManifestNode, Plan, PutTag, make_plan, transfer
from mirror.sync.phase import check_unmoved
from mirror.sync.publish import (
    Standing,
    begin,
    complete,
    generations,
    read_generation,
    read_standing,
)
from mirror.sync.registry import RegistrySource, RegistryTarget
from mirror.sync.statement import Statement, succeed
from mirror.sync.succession import state_before
from mirror.sync.tag_removal import deletes_tags, remove_tags
from mirror.sync.tags import Tags, differing, laid_over, tags_of, tags_only, unaccounted
from mirror.sync.workers import DEFAULT_JOBS, for_each


@dataclass(frozen=True, slots=True)
class TagTurn:
    """A tag that names `before` (None: nothing) and is to name `after`."""

    repository: str
    tag: str
    before: Digest | None
    after: Digest

    def to_document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "repository": self.repository,
            "tag": self.tag,
            "before": str(self.before) if self.before else None,
            "after": str(self.after),
        }


@dataclass(frozen=True, slots=True)
class RollbackReport:
    """What a rollback did or, if `dry_run`, would do.

    `replaced` is the generation that was there or, if `interrupted`, on its way; `restored` the
    one that is back, by the statement of `generation`. `turned` are the tags that name something
    else now; `extras` those that only later generations have, of which `removed` are gone.
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
        return {
            "target": self.target,
            "dryRun": self.dry_run,
            "replaced": self.replaced,
            "restored": self.restored,
            "generation": self.generation,
            "interrupted": self.interrupted,
            "inventory": str(self.inventory),
            "turned": [turn.to_document() for turn in self.turned],
            "extras": [f"{path}:{tag}" for path, tag in self.extras],
            "removed": [f"{path}:{tag}" for path, tag in self.removed],
        }


def rollback(
    client: RegistryClient,
    tree: TargetTree,
    *,
    to: int | None = None,
    dry_run: bool = False,
    jobs: int = DEFAULT_JOBS,
    on_event: OnEvent = ignore_events,
    cancel: threading.Event | None = None,
) -> RollbackReport:
    """Put the tags back to what they named when the generation after `to` began.

    That is what generation `to` stated, and beside it what other tools had set meanwhile. 0 is the
    state before the first generation, as far as a later one had to do with its tags. Without `to`
    an interrupted phase is turned back (that of a rollback: finished); without one it is the
    generation before the current one.

    Everything that the tags are to lead to is asked for first. Tags that came since are deleted
    where the registry can delete a tag and keep its manifest; elsewhere they stay.

    Raises:
        InputError: there is no such generation to go back to.
        NotFoundError: the registry states no inventory.
        IncompleteError: something of that generation is not there any more; nothing was changed.
        ConflictError: somebody else changed the same registry meanwhile.
        CancelledError: `cancel` was set; running it again completes it.
    """
    cancel = cancel or threading.Event()
    client.ping()
    target = RegistryTarget(client, tree.locate, f"registry {tree.root}", jobs=jobs, cancel=cancel)
    source = RegistrySource(client, tree.locate, target.name)
    standing = read_standing(client, tree.locate)
    for notice in standing.notices:
        on_event(Warned(notice))
    back = _way_back(client, tree, standing, to, on_event)
    on_event(PhaseStarted(f"checking that all of generation {back.to} is there"))
    wanted = back.wanted(source, jobs, cancel)
    held = target.held(wanted)
    plan = make_plan(wanted, held, stage=publication_stage)
    _refuse_if_lost(plan, target.name, back.to)
    extras = _extras(target, standing, tags_of(wanted))
    statement = back.statement(standing, wanted, tags_of(held))
    report = RollbackReport(
        str(tree.root),
        back.replaced.generation,
        back.to,
        statement.generation if statement else back.replaced.generation,
        standing.pending is not None,
        tuple(_turns(plan, held)),
        tuple((step.repository, step.tag) for step in extras),
        (),
        wanted.digest(),
        dry_run,
    )
    if dry_run or (statement is None and not plan and not extras):
        return report
    check_unmoved(target, plan, held)
    # Also a repair that changes no statement goes through the phase of the one that holds.
    stated = statement or back.replaced
    artifact = stated.artifact()
    begin(client, tree.locate, artifact)
    on_event(PhaseStarted(f"turning {plan.tag_count} tags back"))
    transfer(Plan(tags=plan.tags), source, target, jobs=jobs, cancel=cancel)
    removed: tuple[tuple[str, str], ...] = ()
    if extras and deletes_tags(client, tree.locate, stated.inventory.digest().encoded):
        on_event(PhaseStarted(f"removing {len(extras)} tags"))
        removed = remove_tags(
            target, extras, stage=publication_stage, jobs=jobs, on_event=on_event, cancel=cancel
        )
    complete(client, tree.locate, stated, artifact.manifest.digest)
    return replace(report, removed=removed)


@dataclass(frozen=True, slots=True)
class _WayBack:
    """From `replaced` to generation `to`: `base`, and what it does not tell of its tags."""

    to: int
    base: Inventory
    former: Tags
    replaced: Statement

    def wanted(self, source: RegistrySource, jobs: int, cancel: threading.Event) -> Inventory:
        """All that the registry held then; what other tools set is read from it."""
        others = differing(self.former, tags_of(self.base))
        if not others:
            return self.base
        builder = InventoryBuilder()
        builder.add_inventory(tags_only(others))
        roots = sorted(
            {(path, digest) for path, tags in others.items() for digest in tags.values()}
        )
        lost: list[tuple[str, MirrorError]] = []

        def graph(root: tuple[str, Digest]) -> list[ManifestNode]:
            nodes, pending = [], [root[1]]
            while pending:
                node = ManifestNode.of(source.manifest(root[0], pending.pop()))
                nodes.append(node)
                pending += [child.digest for child in node.children]
            return nodes

        with closing(for_each(roots, graph, jobs=jobs, cancel=cancel)) as outcomes:
            for (path, digest), outcome in outcomes:
                if isinstance(outcome, MirrorError):
                    lost.append((f"manifest {path or '/'}@{digest}", outcome))
                else:
                    for node in outcome:
                        builder.add_manifest(path, node)
        if lost:
            raise _incomplete(source.name, self.to, lost)
        return succeed(self.base, builder.build())

    def statement(self, standing: Standing, wanted: Inventory, held: Tags) -> Statement | None:
        """What the registry is to state; None if the statement that is replaced says it already."""
        former = unaccounted(held, *standing.known_tags())
        same = wanted == self.replaced.inventory
        if standing.pending is None:
            if same and not former:
                return None
        else:
            if same and self.replaced.restores == self.to:
                return None  # the same rollback, interrupted: it goes on
            former = laid_over(former, self.replaced.former)
        number = standing.generation + 1
        return Statement(wanted, number, former, restores=self.to, tool=tool_name())


def _way_back(
    client: RegistryClient, tree: TargetTree, standing: Standing, to: int | None, on_event: OnEvent
) -> _WayBack:
    """Decide where to go back to, and read what is known about it."""
    newest = standing.newest
    if newest is None:
        raise NotFoundError(
            f"registry {tree.root} states no inventory, so there is nothing to go back to; a push "
            "writes one"
        )
    kept = generations(client, tree.locate)
    current = standing.current.statement.generation if standing.current else 0
    to = _destination(standing, current, kept) if to is None else to
    top = newest.statement.generation
    if to >= top:
        raise InputError(
            f"generation {to} is not before the current one, {top}; `mirror history` lists them"
        )
    base = Inventory()
    if to > 0:
        found = standing.current if to == current else None
        found = found or read_generation(client, tree.locate, to)
        if found is None:
            raise InputError(
                f"registry {tree.root} keeps no generation {to}, but "
                + (", ".join(map(str, kept[-20:])) or "none at all")
            )
        base = found.statement.inventory
    numbers = [number for number in kept if to < number < top]
    later = _later(client, tree, numbers, newest.statement, on_event)
    return _WayBack(to, base, state_before(base, later), newest.statement)


def _destination(standing: Standing, current: int, kept: Sequence[int]) -> int:
    """Where a rollback goes that was told nothing."""
    if standing.pending is not None:
        restores = standing.pending.statement.restores
        return current if restores is None else restores
    before = [number for number in kept if number < current]
    if not before:
        raise InputError(
            f"there is no generation before {current}; with --to 0 tags go back to what they named "
            "before the first one"
        )
    return before[-1]


def _later(
    client: RegistryClient,
    tree: TargetTree,
    numbers: Sequence[int],
    newest: Statement,
    on_event: OnEvent,
) -> Iterator[Statement]:
    """The statements of `numbers`, one in memory at a time, and `newest`."""
    for number in numbers:
        try:
            found = read_generation(client, tree.locate, number)
        except StatementError as err:
            on_event(Warned(f"{err}; what other tools had set before it cannot be put back"))
            continue
        if found is not None:
            yield found.statement
    yield newest


def _refuse_if_lost(plan: Plan, name: str, to: int) -> None:
    """Raise IncompleteError if more than tags lack."""
    lost = [f"blob {blob.digest} in {path or '/'}" for blob in plan.blobs for path in blob.into]
    lost += [
        f"manifest {put.repository or '/'}@{put.digest}" for wave in plan.manifests for put in wave
    ]
    if lost:
        gone = NotFoundError("is not there any more")
        raise _incomplete(name, to, [(item, gone) for item in sorted(lost)])


def _incomplete(name: str, to: int, lost: Sequence[tuple[str, MirrorError]]) -> IncompleteError:
    return IncompleteError(
        f"{name} does not hold all of generation {to} any more, so no tag was changed; push the "
        f"bundle of that release to bring it back. {len(lost)} things lack",
        lost,
    )


def _extras(target: RegistryTarget, standing: Standing, wanted: Tags) -> tuple[PutTag, ...]:
    """Tags that later generations brought, as they are to go: what leads somewhere goes first.

    Those that somebody else has set to something else meanwhile are left out.
    """
    brought: dict[tuple[str, str], set[Digest]] = {}
    for known in standing.known_tags():
        for path, tags in known.items():
            for tag, digest in tags.items():
                if tag not in wanted.get(path, {}):
                    brought.setdefault((path, tag), set()).add(digest)
    asked: dict[str, dict[str, Digest]] = {}
    for (path, tag), digests in brought.items():
        asked.setdefault(path, {})[tag] = min(digests)
    held = target.held(tags_only(asked))
    steps = [
        PutTag(path, tag, digest)
        for path, content in held.repositories.items()
        for tag, digest in content.tags.items()
        if digest in brought[path, tag]
    ]
    return tuple(sorted(steps, key=_last_first))


def _last_first(step: PutTag) -> tuple[int, str, str]:
    return (-publication_stage(step.repository, step.tag), step.repository, step.tag)


def _turns(plan: Plan, held: Inventory) -> Iterator[TagTurn]:
    for stage in plan.tags:
        for step in stage:
            before = held.repository(step.repository).tags.get(step.tag)
            yield TagTurn(step.repository, step.tag, before, step.digest)
