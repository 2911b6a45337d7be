"""Prune: remove from a registry what nothing kept names, from a replica what its leader has not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirror.documents import document
from mirror.errors import ConflictError, PruneRefusedError, common_exit_code, counted
from mirror.events import PhaseStarted, Warned
from mirror.layout import tool_name
from mirror.oci import Digest
from mirror.operations.leader import Leader
from mirror.release.discovery import component_names, discovery_images
from mirror.run import Run, gather
from mirror.sync import Inventory, InventoryBuilder, Plan, union
from mirror.sync.inventory import RepositoryContent
from mirror.sync.observation import Failure, Observation
from mirror.sync.plan import missing_content, tags_of, tags_only
from mirror.sync.publication import Goal, Publication, check_state
from mirror.sync.publication_state import (
    PublicationState,
    Published,
    generation_tag,
    generations,
    kept_statements,
    reached_note,
    reached_tag,
    read_state,
    read_tips,
)
from mirror.sync.removal import DropManifest, DropTag, Removal, check_deletes, plan_removal, remove
from mirror.sync.statement import REPOSITORY, Statement, following
from mirror.sync.tree import RegistryTree
from mirror.sync.walk import walk


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What was removed or, in a dry run, would be.

    `freed` is the bytes of blobs that nothing needs any more. `generations` can no longer be
    restored; where the current one is among them, a new one takes its place. `published` is what
    the registry states now. `components` are those of which an image would go, as installers call
    them; only a dry run asks.
    """

    target: str
    dry_run: bool
    removal: Removal
    freed: int
    generations: tuple[int, ...]
    published: Published | None
    failures: tuple[Failure, ...]
    components: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, else the code that all failures share, or 1."""
        return common_exit_code(failure.error for failure in self.failures)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        stated = self.published
        return {
            **document(self, "target", "dry_run", "removed=removal", "freedBytes=freed"),
            **document(self, "generations", "components", "failures"),
            "statement": str(stated.digest) if stated else None,
            "generation": stated.statement.generation if stated else None,
        }


def prune(
    tree: RegistryTree, keep: Sequence[Path | int], *, dry_run: bool = False, run: Run | None = None
) -> PruneReport:
    """Remove tags and manifests that nothing in `keep` names: bundles, inventories, generations.

    The scope is the repositories that the registry's statements or `keep` name, and nothing beside
    them; a kept statement of a generation above the current one adds nothing to it. A kept tag
    keeps what it names now. The new, smaller statement is published before anything goes, and the
    statements that promised more go with it: at no moment does the registry state more than it
    has. Its own garbage collector frees the space afterwards.

    Raises:
        InputError: `keep` is empty, or names a generation that is not there.
        PruneRefusedError: a publication was interrupted, kept tags have turned to what would go,
            nothing would be left, or what is there cannot be read.
        ConflictError: somebody published something meanwhile; nothing was changed.
        CancelledError: the run was stopped.
    """
    run = Run.of(run)
    tree = tree.within(run)
    run.on_event(PhaseStarted(f"looking at {tree.name}"))
    state = read_state(tree)

    def refused(why: str) -> PruneRefusedError:
        return PruneRefusedError(f"{tree.name}: nothing was pruned: {why}")

    if state.pending is not None:
        number = state.pending.statement.generation
        raise refused(
            f"the publication of generation {number} was interrupted; push or sync again first"
        )
    promised: dict[int, _KeptGeneration] = {}
    inventories: list[Inventory] = []
    stated = InventoryBuilder()
    same: dict[Digest, Digest] = {}  # equal digests as one object
    for number, published in _published(tree, state):
        inventory = published.statement.inventory
        if state.current is None or number <= state.current.statement.generation:
            stated.add_inventory(inventory)
        else:  # whoever may write statements could name anybody's repositories in it
            run.on_event(
                Warned(
                    f"{tree.name}: it keeps a generation {number}, which is above the one that it "
                    f"states, {state.current.statement.generation}; what only that one names is "
                    "left alone: find out who wrote it"
                )
            )
        if number in keep:
            inventories.append(inventory)
        promised[number] = _KeptGeneration.of(published, same)
    for one in keep:
        if isinstance(one, Path):
            inventories.append(_inventory_of(one))
        elif one not in promised:
            held = ", ".join(map(str, sorted(promised))) or "none"
            raise refused(
                f"it has no generation {one}; those it has: {held} (--keep takes their numbers, "
                "not how many)"
            )
    kept, known = union(inventories), stated.build()
    scope = frozenset({*known.repositories, *kept.repositories})
    if not kept.repositories:
        raise refused("there is nothing to keep")
    if state.current is not None and (moved := _moved(state.current, inventories)):
        others = len(moved) - 1
        tags = f"{moved[0]} and {counted(others, 'more tag')} have" if others else f"{moved[0]} has"
        raise refused(
            f"{tags} turned since to what would not be "
            "kept, so what they lead to could go; keep the newest bundle, or generation "
            f"{state.current.statement.generation}, as well"
        )
    found = walk(tree.source(), scope, known=union([kept, known]), run=run.quietly()).complete()
    if found.failures:
        first = found.failures[0]
        raise refused(
            f"{len(found.failures)} of its items cannot be read, "
            f"the first being {first.item}: {first.error}"
        )
    there = found.held
    removal = plan_removal(there, kept, scope)
    rest = after(there, removal)
    if not rest.repositories and removal:
        raise refused(
            "the registry has none of the content to keep, so all of it would go; check --keep, "
            "and the registry's path"
        )
    current = state.current
    doomed = {
        number: one
        for number, one in promised.items()
        # A smaller statement takes the place of the current one, if anything goes.
        if not one.is_within(rest) and (removal or current is None or one.digest != current.digest)
    }
    failures: tuple[Failure, ...] = ()
    if removal and not dry_run:
        check_deletes(tree)  # before a smaller state is published
        current = _state_rest(tree, state, rest, run)
        tips = read_tips(tree)
        gone: list[DropTag | DropManifest] = []
        failures = _carry_out(tree, removal, doomed, gone, run)
        removal = removal.only(gone)
        if read_tips(tree) != tips:
            overtaken = ConflictError(
                f"{tree.name}: another push, rollback or sync published something while this prune "
                "removed things that it may have counted on; run that one again, which brings what "
                "is missing, and `mirror status --blobs` to see that everything is there"
            )
            failures += (Failure(tree.name, "the registry as a whole", overtaken),)
    left, before = after(there, removal).blob_sizes(), there.blob_sizes()
    freed = sum(size for digest, size in before.items() if digest not in left)
    numbers = tuple(sorted(doomed))
    names = _components(tree, there, removal) if dry_run else ()
    return PruneReport(tree.name, dry_run, removal, freed, numbers, current, failures, names)


def _components(tree: RegistryTree, there: Inventory, removal: Removal) -> tuple[str, ...]:
    """What the registry's installers call the images of the platform that would go."""
    going = {one.digest for one in removal.manifests if not one.repository}
    if not going:
        return ()
    names = component_names(tree.source(), there)
    return tuple(sorted({name for image, name in names.items() if image in going}))


def _moved(current: Published, kept: Sequence[Inventory]) -> list[str]:
    """Kept tags that the registry states to name what none of `kept` knows by that name."""
    return [
        f"{path or '/'}:{tag}"
        for path, content in current.statement.inventory.repositories.items()
        for tag, digest in content.tags.items()
        if (
            named := {
                one.repository(path).tags[tag] for one in kept if tag in one.repository(path).tags
            }
        )
        and digest not in named
    ]


def _published(tree: RegistryTree, state: PublicationState) -> Iterator[tuple[int, Published]]:
    """Each generation whose statement the registry keeps, once; one in memory at a time."""
    seen = set()
    for number, published in kept_statements(tree):
        seen.add(number)
        yield number, published
    current = state.current
    if current is not None and current.statement.generation not in seen:
        yield current.statement.generation, current


@dataclass(frozen=True, slots=True)
class _KeptGeneration:
    """What is kept of a statement while others are read: which manifests it promises."""

    digest: Digest
    manifests: Mapping[str, frozenset[Digest]]

    @classmethod
    def of(cls, published: Published, same: dict[Digest, Digest]) -> _KeptGeneration:
        """What `published` promises; `same` has each digest once, for all generations."""
        contents = published.statement.inventory.repositories.items()
        manifests = {
            path: frozenset(same.setdefault(one, one) for one in content.manifests)
            for path, content in contents
        }
        return cls(published.digest, manifests)

    def is_within(self, rest: Inventory) -> bool:
        """Whether all of them are in `rest`, so that a rollback can go back to it."""
        return all(
            digests <= rest.repository(path).manifests.keys()
            for path, digests in self.manifests.items()
        )


def after(there: Inventory, removal: Removal) -> Inventory:
    """What `removal` leaves of `there`, without blobs that only the removed manifests need."""
    gone = {(one.repository, one.digest) for one in removal.manifests}
    untagged = {(one.repository, one.tag) for one in removal.tags}
    contents = {}
    for path, content in there.repositories.items():
        manifests = {d: node for d, node in content.manifests.items() if (path, d) not in gone}
        named = {tag: d for tag, d in content.tags.items() if d in manifests}
        tags = {tag: d for tag, d in named.items() if (path, tag) not in untagged}
        blobs = {blob.digest: blob.size for node in manifests.values() for blob in node.blobs}
        blobs |= {
            layer.digest: layer.size
            for node in manifests.values()
            for layer in node.foreign
            if layer.digest in content.blobs
        }
        if left := RepositoryContent(tags, manifests, blobs):
            contents[path] = left
    return Inventory(contents)


def _inventory_of(place: Path) -> Inventory:
    """What a push of a bundle or an inventory would make, whatever has those names now."""
    from mirror.bundle.reader import read_inventory

    found = read_inventory(place)
    return union([found, discovery_images(found).inventory()])


def _state_rest(
    tree: RegistryTree, state: PublicationState, rest: Inventory, run: Run
) -> Published | None:
    """Publish what will be left, before anything goes; returns what the registry states then."""
    current = state.current
    if current is None or current.statement.inventory == rest:
        check_state(tree, state)
        return current
    statement = Statement(rest, following(state.generation), tool=tool_name())
    goal = Goal.of(statement, tree.keys)
    publication = Publication(tree, state, goal, heard=False)
    publication.carry_out(Plan(), tree.source(), tree.target(run), run=run)
    return goal.published


def _carry_out(
    tree: RegistryTree,
    removal: Removal,
    doomed: Mapping[int, _KeptGeneration],
    gone: list[DropTag | DropManifest],
    run: Run,
) -> tuple[Failure, ...]:
    """Remove the statements of `doomed`, then what they promised."""
    run.on_event(PhaseStarted("removing", len(removal.tags) + len(removal.manifests)))
    statements = [
        DropManifest(REPOSITORY, one.digest, (generation_tag(number),))
        for number, one in sorted(doomed.items())
    ]
    statements += [
        DropManifest(REPOSITORY, note.digest, (reached_tag(number),))
        for number in sorted(doomed)
        if (note := reached_note(tree, number))
    ]
    failures = remove(Removal(manifests=tuple(statements)), tree, run=run)
    return failures or remove(removal, tree, gone=gone, run=run)


# -- a replica, of what its leader does not have ---------------------------------------------------


def find_extras(
    tree: RegistryTree, wanted: Inventory, known: Inventory, found: Observation, run: Run
) -> tuple[Removal, tuple[Failure, ...]]:
    """What the replica has beyond `wanted`, all of which it has by now, and what cannot be read.

    `known` is what it stated; that names manifests which no tag leads to.
    """
    listed = {
        path: tags - content.tags.keys() - content.referrers_tags()
        for path, tags in found.listed.items()
        if path != REPOSITORY
        for content in [wanted.repository(path)]
    }
    scope = frozenset({*wanted.repositories, *known.repositories})
    beyond = walk(
        tree.source(), scope, known=missing_content(known, wanted), only=listed, run=run.quietly()
    ).complete()
    # By now the tags that the leader has too name what they name there.
    there = union([found.held, beyond.held, tags_only(tags_of(wanted))])
    return plan_removal(there, wanted, scope), beyond.failures


def refuse_to_prune(
    tree: RegistryTree, leader: Leader, removal: Removal, *, incomplete: bool, run: Run
) -> None:
    """Check that both registries are sound enough for a prune, and that the leader has none of it.

    A statement may lack what the leader has: somebody forged it, another tool set the tag, or a
    rollback left it there. So the leader is asked for its tags, once for each repository concerned.
    """
    head = leader.tree.name
    if leader.digest is None:
        problem = (
            f"the leader {head} states no inventory, so what it does not have may be its loss; "
            "push to it first"
        )
    elif not leader.is_sound():
        problem = f"the leader {head} does not hold all that it states; repair that first"
    elif incomplete:
        problem = "this replica is not complete; repair that first"
    elif alive := _tags_at(leader.tree.within(run), removal, run):
        problem = (
            f"the leader {head} has {len(alive)} of the tags that would go and does not state "
            f"them, {alive[0]} among them; find out who wrote its statement, then push to it the "
            "bundle that it is to have, or `mirror prune` it first"
        )
    else:
        return
    raise PruneRefusedError(f"{tree.name}: nothing was pruned: {problem}")


def _tags_at(leader: RegistryTree, removal: Removal, run: Run) -> list[str]:
    """Those tags of `removal` that `leader` has, sorted."""
    going: dict[str, set[str]] = {}
    for one in removal.tags:
        going.setdefault(one.repository, set()).add(one.tag)
    for gone in removal.manifests:
        going.setdefault(gone.repository, set()).update(gone.tags)
    paths = [path for path, tags in going.items() if tags]
    listed = gather(paths, leader.listed_tags, run=run)
    return sorted(
        f"{path or '/'}:{tag}"
        for path, tags in zip(paths, listed, strict=True)
        for tag in going[path] & tags
    )


def remove_extras(
    tree: RegistryTree, removal: Removal, current: Digest, run: Run
) -> tuple[Removal, tuple[Failure, ...]]:
    """Carry out `removal`, then remove all statements but `current`.

    Returns what is gone, and what could not be removed.
    """
    if not removal:
        return removal, ()
    check_deletes(tree)
    former = _statements_but(tree, current, run)
    gone: list[DropTag | DropManifest] = []
    failures = remove(removal, tree, gone=gone, run=run)
    if not failures:
        # They promise a way back to what has just gone.
        failures = remove(former, tree, run=run)
    return removal.only(gone), failures


def _statements_but(tree: RegistryTree, current: Digest, run: Run) -> Removal:
    found = walk(tree.source(), [REPOSITORY], run=run.quietly()).complete()
    there = found.held.repository(REPOSITORY).tags
    kept = {reached_tag(n) for n in generations(tree) if there.get(generation_tag(n)) == current}
    tags: dict[Digest, list[str]] = {}
    for tag, digest in there.items():
        if digest != current and tag not in kept:
            tags.setdefault(digest, []).append(tag)
    return Removal(
        manifests=tuple(
            DropManifest(REPOSITORY, digest, tuple(names)) for digest, names in tags.items()
        )
    )
