"""Plans: the pure difference of two inventories, as an ordered list of steps.

No clock, disk or network is consulted; equal inputs give equal plans. `--dry-run` prints a plan,
and a transfer carries it out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from graphlib import TopologicalSorter
from typing import Any

from mirror.layout import archive_of, component_of
from mirror.oci import Digest
from mirror.sync.inventory import Inventory, RepositoryContent

TagStage = Callable[[str, str], int]
"""(repository, tag) → when the tag appears: all of a stage before any of the next."""


@dataclass(frozen=True, slots=True)
class CopyBlob:
    """One blob, carried once. `size` in bytes.

    `into` lists the repositories that lack it: bytes go to the first, the rest follow from there.
    `mount_from` is a repository of the target that holds it already, so that no byte need move.
    `source` is the repository to read it from.
    """

    digest: Digest
    size: int
    into: tuple[str, ...]
    source: str
    mount_from: str | None = None


@dataclass(frozen=True, slots=True)
class PutManifest:
    """One manifest into one repository, by its digest."""

    repository: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class PutTag:
    """One tag of one repository names `digest` from now on."""

    repository: str
    tag: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class Plan:
    """What to carry. Stages run in this order and a failed one stops the rest, so no tag dangles.

    Blobs may go in any order, in parallel. Each wave of manifests needs only blobs and earlier
    waves. Each stage of tags waits for the one before it.
    """

    blobs: tuple[CopyBlob, ...] = ()
    manifests: tuple[tuple[PutManifest, ...], ...] = ()
    tags: tuple[tuple[PutTag, ...], ...] = ()

    def __bool__(self) -> bool:
        return any((self.blobs, self.manifests, self.tags))

    @property
    def size(self) -> int:
        """The most bytes that will move. Blobs that can be mounted do not count."""
        return sum(step.size for step in self.blobs if step.mount_from is None)

    @property
    def blob_bytes(self) -> int:
        """The bytes of all blobs, whether they move or can be mounted."""
        return sum(step.size for step in self.blobs)

    @property
    def manifest_count(self) -> int:
        """How many manifests will be written."""
        return sum(map(len, self.manifests))

    @property
    def tag_count(self) -> int:
        """How many tags will be set."""
        return sum(map(len, self.tags))


def make_plan(
    wanted: Inventory, held: Inventory, *, stage: TagStage = lambda _repository, _tag: 0
) -> Plan:
    """Say what a place that holds `held` must get to serve all of `wanted`.

    `held` may know more than `wanted` does; extras are left alone, and serve as mount sources.
    """
    return Plan(_blobs(wanted, held), _manifests(wanted, held), _tags(wanted, held, stage))


@lru_cache(maxsize=1 << 12)  # a plan asks for the same few paths again and again
def _archive_of(path: str) -> str | None:
    return None if component_of(path)[0] == "other" else archive_of(path)


def archives_of(step: CopyBlob) -> set[str]:
    """The archives in which the repositories that lack the blob travel.

    Descriptions of packages count as parts of the packages, though all have one archive besides.
    """
    return {name for path in step.into if (name := _archive_of(path))}


def by_archive(plan: Plan) -> Plan:
    """The same plan, its blobs one archive after the other, as somebody watches them arrive.

    An archive whose largest blob is smaller comes later, and in each the largest come first, so
    that the last worker to finish is still busy with something small.
    """
    archives: dict[str, list[CopyBlob]] = {}
    for step in plan.blobs:  # largest first
        archives.setdefault(min(archives_of(step), default=""), []).append(step)
    return replace(plan, blobs=tuple(step for steps in archives.values() for step in steps))


def _blobs(wanted: Inventory, held: Inventory) -> tuple[CopyBlob, ...]:
    sizes: dict[Digest, int] = {}
    lacking: dict[Digest, tuple[str, ...]] = {}
    source: dict[Digest, str] = {}
    for path, content in sorted(wanted.repositories.items()):
        there, own = held.repository(path).blobs, (path,)
        for digest, size in content.blobs.items():
            source.setdefault(digest, path)
            if digest not in there:
                sizes[digest] = size
                lacking[digest] = lacking[digest] + own if digest in lacking else own
    holders: dict[Digest, str] = {}
    for path, content in sorted(held.repositories.items()):
        for digest in content.blobs:
            if digest in lacking:
                holders.setdefault(digest, path)
    # Largest first: the last worker to finish should be busy with something small.
    order = sorted(sorted(lacking), key=sizes.__getitem__, reverse=True)
    return tuple(
        CopyBlob(digest, sizes[digest], lacking[digest], source[digest], holders.get(digest))
        for digest in order
    )


def _manifests(wanted: Inventory, held: Inventory) -> tuple[tuple[PutManifest, ...], ...]:
    waves: list[list[PutManifest]] = []
    for path, content in sorted(wanted.repositories.items()):
        there = held.repository(path).manifests
        heights = _heights(content)
        for digest in sorted(content.manifests):
            if digest not in there:
                height = heights[digest]
                waves.extend([] for _ in range(height + 1 - len(waves)))
                waves[height].append(PutManifest(path, digest))
    return tuple(tuple(wave) for wave in waves if wave)


def _heights(content: RepositoryContent) -> Mapping[Digest, int]:
    """How many generations of children each manifest has below it within this repository."""
    below = {
        digest: [one.digest for one in node.children if one.digest in content.manifests]
        for digest, node in content.manifests.items()
        if node.children
    }
    heights = dict.fromkeys(content.manifests, 0)
    # In order, and not by recursion: an index may nest as deep as a hostile author likes.
    for digest in TopologicalSorter(below).static_order():
        heights[digest] = 1 + max((heights[one] for one in below.get(digest, ())), default=-1)
    return heights


def _tags(wanted: Inventory, held: Inventory, stage: TagStage) -> tuple[tuple[PutTag, ...], ...]:
    stages: dict[int, list[PutTag]] = {}
    for path, content in sorted(wanted.repositories.items()):
        there = held.repository(path).tags
        for tag, digest in sorted(content.tags.items()):
            if there.get(tag) != digest:
                stages.setdefault(stage(path, tag), []).append(PutTag(path, tag, digest))
    return tuple(tuple(stages[number]) for number in sorted(stages))


NewTags = Mapping[PutManifest, Sequence[PutTag]]
"""Manifests that go by their tags alone, which are new and may be seen at once."""


def new_tags(
    plan: Plan, held: Inventory, alone: Callable[[str, str], bool]
) -> dict[PutManifest, list[PutTag]]:
    """The manifests of `plan` that tags which nobody has seen may carry, each with those tags.

    `held` is what the plan was made for; `alone` says of a (repository, tag) whether it promises
    nothing but its own image. A registry that is given a manifest by its tag knows it by SHA-256.
    """
    puts = {put for wave in plan.manifests for put in wave if put.digest.algorithm == "sha256"}
    found: dict[PutManifest, list[PutTag]] = {}
    for step in itertools.chain(*plan.tags):
        put = PutManifest(step.repository, step.digest)
        there = held.repository(step.repository).tags
        if put in puts and step.tag not in there and alone(step.repository, step.tag):
            found.setdefault(put, []).append(step)
    return found


def places_written(plan: Plan) -> dict[str, bool]:
    """One repository for each part of the tree (first segment of the path) that `plan` writes to.

    True for one that a blob is uploaded into, which is preferred.
    """
    uploads = {step.into[0] for step in plan.blobs if step.mount_from is None}
    written = uploads.union(*(step.into for step in plan.blobs))
    written.update(put.repository for wave in plan.manifests for put in wave)
    written.update(name.repository for stage in plan.tags for name in stage)
    chosen: dict[str, str] = {}
    for path in sorted(written, key=lambda path: (path not in uploads, path)):
        chosen.setdefault(path.partition("/")[0], path)
    return {path: path in uploads for path in sorted(chosen.values())}


# -- what differs -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TagDifference:
    """A tag that differs between two places: what it names in each, None where it is absent.

    Sizes are the bytes of all that the tag reaches there, shared parts included.
    """

    repository: str
    tag: str
    ours: Digest | None
    theirs: Digest | None
    our_size: int = 0
    their_size: int = 0

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "repository": self.repository,
            "tag": self.tag,
            "a": {"digest": str(self.ours), "bytes": self.our_size} if self.ours else None,
            "b": {"digest": str(self.theirs), "bytes": self.their_size} if self.theirs else None,
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs. `manifests` are those that no tag of `tags` accounts for: untagged ones.

    `only_ours` and `only_theirs` are the bytes of distinct blobs that one side alone has.
    """

    tags: tuple[TagDifference, ...]
    our_manifests: tuple[tuple[str, Digest], ...]
    their_manifests: tuple[tuple[str, Digest], ...]
    only_ours: int
    only_theirs: int

    def __bool__(self) -> bool:
        manifests = self.our_manifests, self.their_manifests
        return any((self.tags, *manifests, self.only_ours, self.only_theirs))

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""

        def listed(manifests: tuple[tuple[str, Digest], ...]) -> list[dict[str, str]]:
            return [{"repository": path, "digest": str(digest)} for path, digest in manifests]

        return {
            "tags": [one.to_document() for one in self.tags],
            "manifests": {"a": listed(self.our_manifests), "b": listed(self.their_manifests)},
            "bytes": {"a": self.only_ours, "b": self.only_theirs},
        }


def differ(ours: Inventory, theirs: Inventory) -> Difference:
    """Compare two inventories. The result is falsy if they hold the same."""
    tags = tuple(_tag_differences(ours, theirs))
    named = {(one.repository, digest) for one in tags for digest in (one.ours, one.theirs)}
    # Not `blob_sizes`: sorting them would take most of the time.
    our_blobs, their_blobs = (
        {
            digest: size
            for content in one.repositories.values()
            for digest, size in content.blobs.items()
        }
        for one in (ours, theirs)
    )
    return Difference(
        tags,
        tuple(_untagged(ours, theirs, named)),
        tuple(_untagged(theirs, ours, named)),
        sum(size for digest, size in our_blobs.items() if digest not in their_blobs),
        sum(size for digest, size in their_blobs.items() if digest not in our_blobs),
    )


def missing_content(wanted: Inventory, held: Inventory) -> Inventory:
    """The part of `wanted` that is not in `held`; open where it needs something from `held`."""
    contents = {}
    for path, content in wanted.repositories.items():
        there = held.repository(path)
        if content is there:
            continue
        rest = RepositoryContent(
            {tag: digest for tag, digest in content.tags.items() if there.tags.get(tag) != digest},
            {d: node for d, node in content.manifests.items() if d not in there.manifests},
            {d: size for d, size in content.blobs.items() if d not in there.blobs},
        )
        if rest:
            contents[path] = rest
    return Inventory(contents)


def _tag_differences(ours: Inventory, theirs: Inventory) -> Iterator[TagDifference]:
    for path in sorted({*ours.repositories, *theirs.repositories}):
        here, there = ours.repository(path), theirs.repository(path)
        for tag in sorted({*here.tags, *there.tags}):
            one, other = here.tags.get(tag), there.tags.get(tag)
            if one != other:
                size = here.closure_size(one) if one else 0
                their_size = there.closure_size(other) if other else 0
                yield TagDifference(path, tag, one, other, size, their_size)


def _untagged(
    ours: Inventory, theirs: Inventory, named: set[tuple[str, Digest | None]]
) -> Iterator[tuple[str, Digest]]:
    """Manifests that only `ours` has and that no differing tag leads to."""
    for path, beyond in sorted(missing_content(ours, theirs).repositories.items()):
        reached = beyond.reachable(digest for digest in beyond.manifests if (path, digest) in named)
        yield from ((path, digest) for digest in sorted(beyond.manifests.keys() - reached))


Tags = Mapping[str, Mapping[str, Digest]]
"""Repository → tag → digest."""


def tags_of(inventory: Inventory) -> Tags:
    """The tags of every repository."""
    return {path: content.tags for path, content in inventory.repositories.items() if content.tags}


def tags_of_steps(steps: Sequence[PutTag]) -> Tags:
    """What tags name after `steps`."""
    tags: dict[str, dict[str, Digest]] = {}
    for step in steps:
        tags.setdefault(step.repository, {})[step.tag] = step.digest
    return tags


def tags_only(tags: Tags) -> Inventory:
    """An inventory of these tags and nothing that they lead to: for comparing and setting tags."""
    return Inventory({path: RepositoryContent(dict(one)) for path, one in tags.items() if one})


def laid_over(below: Tags, above: Tags) -> Tags:
    """The tags of both; where both name a tag, `above` wins."""
    return {
        path: {**below.get(path, {}), **above.get(path, {})} for path in sorted({*below, *above})
    }


def differing(tags: Tags, others: Tags) -> Tags:
    """The tags that `others` does not have, or has with another digest."""
    found: dict[str, dict[str, Digest]] = {}
    for path, one in tags.items():
        there = others.get(path, {})
        found[path] = {tag: digest for tag, digest in one.items() if there.get(tag) != digest}
    return {path: one for path, one in found.items() if one}


def unaccounted(held: Tags, *known: Tags) -> Tags:
    """The tags of `held` that none of `known` has: somebody else set them."""
    for one in known:
        held = differing(held, one)
    return held


@dataclass(frozen=True, slots=True)
class TagChanges:
    """What became of tags from one state to the next: (repository, tag), sorted."""

    added: tuple[tuple[str, str], ...] = ()
    changed: tuple[tuple[str, str], ...] = ()
    removed: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return any((self.added, self.changed, self.removed))


def changes(before: Tags, after: Tags) -> TagChanges:
    """The tags that were added, changed and removed between two states."""
    old, new = (
        {(path, tag): digest for path, tags in state.items() for tag, digest in tags.items()}
        for state in (before, after)
    )
    return TagChanges(
        tuple(sorted(new.keys() - old.keys())),
        tuple(sorted(one for one in new.keys() & old.keys() if new[one] != old[one])),
        tuple(sorted(old.keys() - new.keys())),
    )
