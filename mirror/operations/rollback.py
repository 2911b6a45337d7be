"""Rollback: let all tags name again what they named in an earlier generation.

Nothing was deleted since, so every tag leads to something complete at every moment, in whatever
order they turn. The order is that of a push: images, versions, channels, the index of what exists.
Whatever an earlier generation's channels lead to is tagged as it was before they turn back.
Tags that the earlier generation did not have go last, and the other way round: first the index,
then channels, then the versions that those could lead to.

The state that comes of it is a new generation: numbers only rise, so that replicas follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mirror.errors import NotFoundError
from mirror.events import PhaseStarted, Warned
from mirror.layout import TargetTree, publication_stage
from mirror.oci import Digest
from mirror.operations.way_back import incomplete, read_all, way_back
from mirror.registry import RegistryClient
from mirror.run import Run
from mirror.sync import Inventory, Plan, PutTag, RepositoryContent, make_plan, transfer
from mirror.sync.phase import check_unmoved, tags_of_steps
from mirror.sync.publish import Standing, begin, check_unchanged, complete, read_standing
from mirror.sync.registry import RegistrySource, RegistryTarget
from mirror.sync.statement import reachable
from mirror.sync.tag_removal import deletes_tags, remove_tags
from mirror.sync.tags import Tags, differing, laid_over, tags_of, tags_only


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
    run: Run | None = None,
) -> RollbackReport:
    """Put the tags back to what they named when the generation after `to` began.

    That is what generation `to` stated, and beside it what other tools had set meanwhile. 0 is the
    state before the first generation, as far as a later one had to do with its tags. Without `to`
    an interrupted phase is turned back (that of a rollback: finished); without one it is the
    generation before the current one.

    Everything that the turning tags are to lead to is asked for first. Tags that came since are
    deleted where the registry can delete a tag and keep its manifest; elsewhere they stay.

    Raises:
        InputError: there is no such generation to go back to.
        NotFoundError: the registry states no inventory.
        IncompleteError: something of that generation is not there any more; nothing was changed.
        ConflictError: somebody else changed the same registry meanwhile.
        CancelledError: `run` was stopped; running it again completes it.
    """
    run = Run.of(run)
    client = client.within(run)
    client.ping()
    target = RegistryTarget(client, tree.locate, f"registry {tree.root}", run=run)
    source = RegistrySource(client, tree.locate, target.name)
    standing = read_standing(client, tree.locate)
    for notice in standing.notices:
        run.on_event(Warned(notice))
    back = way_back(client, tree, standing, to, run)
    wanted = back.wanted(source, run)
    lookout = _Lookout(wanted, standing, source, target, back.to, run)
    turning = _expected_turns(wanted, standing)
    run.on_event(PhaseStarted(f"checking what {_count(turning)} tags are to lead to"))
    lookout.refuse_if_lost(turning, untagged=True)
    # The tags themselves are looked at last, so that they turn right after.
    run.on_event(PhaseStarted("comparing tags"))
    tags = tags_only(tags_of(wanted))
    held = target.held(tags)
    plan = make_plan(tags, held, stage=publication_stage)
    if surprising := differing(_tags_of_plan(plan), turning):
        lookout.refuse_if_lost(surprising)
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
    if surprising:
        check_unmoved(target, plan, held)  # to check what those lead to took its time
    # Also a repair that changes no statement goes through the phase of the one that holds.
    stated = statement or back.replaced
    artifact = stated.artifact()
    check_unchanged(client, tree.locate, standing, artifact.manifest.digest)
    begin(client, tree.locate, artifact)
    run.on_event(PhaseStarted(f"turning {plan.tag_count} tags back"))
    transfer(plan, source, target, run=run.quietly())
    removed: tuple[tuple[str, str], ...] = ()
    if extras and deletes_tags(client, tree.locate, stated.inventory.digest().encoded):
        run.on_event(PhaseStarted(f"removing {len(extras)} tags"))
        removed = remove_tags(target, extras, stage=publication_stage, run=run)
    complete(client, tree.locate, stated, artifact.manifest.digest)
    return replace(report, removed=removed)


def _expected_turns(wanted: Inventory, standing: Standing) -> Tags:
    """Tags that will have to turn, by what the registry says of itself."""
    turns: Tags = {}
    for known in standing.known_tags():
        turns = laid_over(turns, differing(tags_of(wanted), known))
    return turns


@dataclass(frozen=True, slots=True)
class _Lookout:
    """Sees to it that a rollback of `target` to `wanted` leads nowhere where something is lost."""

    wanted: Inventory
    standing: Standing
    source: RegistrySource
    target: RegistryTarget
    to: int
    run: Run

    def refuse_if_lost(self, turning: Tags, *, untagged: bool = False) -> None:
        """Check that all is there that `turning` tags will lead to and, if asked, what no tag does.

        What the current statement names in the same repository is taken for there. The manifests
        that tags will name are read, so that the phase in which tags turn has nothing to do but
        that.

        Raises:
            IncompleteError: something is lost or damaged.
        """
        current = self.standing.current
        stated = current.statement.inventory if current else Inventory()
        manifests: list[tuple[str, Digest]] = []
        blobs: dict[str, RepositoryContent] = {}
        for path, content in self.wanted.repositories.items():
            trusted = stated.repository(path)
            named = set(turning.get(path, {}).values())
            loose = content.manifests.keys() - reachable(content, content.tags.values())
            needed = reachable(content, named | loose if untagged else named)
            manifests += ((path, one) for one in sorted(named | needed - trusted.manifests.keys()))
            lacking = {
                blob.digest: blob.size
                for digest in needed
                for blob in content.manifests[digest].blobs
                if blob.digest not in trusted.blobs
            }
            if lacking:
                blobs[path] = RepositoryContent(blobs=lacking)
        read = self.source.manifest
        lost = read_all(manifests, lambda one: read(*one), self.run)[1]
        gone = NotFoundError("is not there any more")
        needed_blobs = Inventory(blobs)
        for step in make_plan(needed_blobs, self.target.held(needed_blobs)).blobs:
            lost += [(f"blob {step.digest} in {path or '/'}", gone) for path in step.into]
        if lost:
            raise incomplete(self.target.name, self.to, sorted(lost, key=lambda one: one[0]))


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


def _tags_of_plan(plan: Plan) -> Tags:
    return tags_of_steps([step for steps in plan.tags for step in steps])


def _count(tags: Tags) -> int:
    return sum(map(len, tags.values()))


def _turns(plan: Plan, held: Inventory) -> Iterator[TagTurn]:
    for stage in plan.tags:
        for step in stage:
            before = held.repository(step.repository).tags.get(step.tag)
            yield TagTurn(step.repository, step.tag, before, step.digest)
