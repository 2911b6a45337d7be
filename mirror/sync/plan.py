"""Plans: the pure difference of two inventories, as an ordered list of steps.

No clock, disk or network is consulted; equal inputs give equal plans. `--dry-run` prints a plan,
and a transfer carries it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mirror.oci import Digest
from mirror.sync.inventory import Inventory
from mirror.sync.repository_content import RepositoryContent

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
        return bool(self.blobs or self.manifests or self.tags)

    @property
    def size(self) -> int:
        """The most bytes that will move. Blobs that can be mounted do not count."""
        return sum(step.size for step in self.blobs if step.mount_from is None)

    @property
    def manifest_count(self) -> int:
        """How many manifests will be written."""
        return sum(map(len, self.manifests))

    @property
    def tag_count(self) -> int:
        """How many tags will be set."""
        return sum(map(len, self.tags))


def _one_stage(_repository: str, _tag: str) -> int:
    return 0


def make_plan(wanted: Inventory, held: Inventory, *, stage: TagStage = _one_stage) -> Plan:
    """Say what a place that holds `held` must get to serve all of `wanted`.

    `held` may know more than `wanted` does; extras are left alone, and serve as mount sources.
    """
    return Plan(
        blobs=_blobs(wanted, held),
        manifests=_manifests(wanted, held),
        tags=_tags(wanted, held, stage),
    )


def _blobs(wanted: Inventory, held: Inventory) -> tuple[CopyBlob, ...]:
    sizes: dict[Digest, int] = {}
    lacking: dict[Digest, list[str]] = {}
    source: dict[Digest, str] = {}
    for path, content in sorted(wanted.repositories.items()):
        there = held.repository(path).blobs
        for digest, size in content.blobs.items():
            source.setdefault(digest, path)
            if digest not in there:
                sizes[digest] = size
                lacking.setdefault(digest, []).append(path)
    holders: dict[Digest, str] = {}
    for path, content in sorted(held.repositories.items()):
        for digest in content.blobs:
            if digest in lacking:
                holders.setdefault(digest, path)
    steps = [
        CopyBlob(digest, sizes[digest], tuple(into), source[digest], holders.get(digest))
        for digest, into in lacking.items()
    ]
    # Largest first: the last worker to finish should be busy with something small.
    return tuple(sorted(steps, key=lambda step: (-step.size, step.digest)))


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
    """How many generations of children each manifest has below it within this repository.

    A digest cannot lie below itself, so the graph has no cycle; the walk is a loop and not a
    recursion, since an index may nest as deep as a hostile author likes.
    """
    heights: dict[Digest, int] = {}
    for root in content.manifests:
        pending = [root]
        while pending:
            digest = pending[-1]
            if digest in heights:
                pending.pop()
                continue
            children = [
                child.digest
                for child in content.manifests[digest].children
                if child.digest in content.manifests
            ]
            waiting = [child for child in children if child not in heights]
            if waiting:
                pending.extend(waiting)
            else:
                heights[digest] = 1 + max((heights[child] for child in children), default=-1)
                pending.pop()
    return heights


def _tags(wanted: Inventory, held: Inventory, stage: TagStage) -> tuple[tuple[PutTag, ...], ...]:
    stages: dict[int, list[PutTag]] = {}
    for path, content in sorted(wanted.repositories.items()):
        there = held.repository(path).tags
        for tag, digest in sorted(content.tags.items()):
            if there.get(tag) != digest:
                stages.setdefault(stage(path, tag), []).append(PutTag(path, tag, digest))
    return tuple(tuple(stages[number]) for number in sorted(stages))


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
