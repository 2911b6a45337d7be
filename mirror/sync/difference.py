"""What differs between two inventories or two states of tags, as values. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mirror.oci import Digest
from mirror.sync.inventory import Inventory
from mirror.sync.repository_content import RepositoryContent


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
            "a": None if self.ours is None else {"digest": str(self.ours), "bytes": self.our_size},
            "b": None
            if self.theirs is None
            else {"digest": str(self.theirs), "bytes": self.their_size},
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
        return bool(
            self.tags
            or self.our_manifests
            or self.their_manifests
            or self.only_ours
            or self.only_theirs
        )

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
    tags: list[TagDifference] = []
    for path in sorted({*ours.repositories, *theirs.repositories}):
        tags += _tags(path, ours.repository(path), theirs.repository(path))
    named = {(one.repository, one.ours) for one in tags} | {
        (one.repository, one.theirs) for one in tags
    }
    our_blobs, their_blobs = _blobs(ours), _blobs(theirs)
    return Difference(
        tuple(tags),
        tuple(_untold(ours, theirs, named)),
        tuple(_untold(theirs, ours, named)),
        _bytes_beyond(our_blobs, their_blobs),
        _bytes_beyond(their_blobs, our_blobs),
    )


def lacking(wanted: Inventory, held: Inventory) -> Inventory:
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


def _tags(path: str, ours: RepositoryContent, theirs: RepositoryContent) -> Iterator[TagDifference]:
    for tag in sorted({*ours.tags, *theirs.tags}):
        one, other = ours.tags.get(tag), theirs.tags.get(tag)
        if one != other:
            yield TagDifference(
                path,
                tag,
                one,
                other,
                0 if one is None else ours.closure_size(one),
                0 if other is None else theirs.closure_size(other),
            )


def _untold(
    ours: Inventory, theirs: Inventory, named: set[tuple[str, Digest | None]]
) -> Iterator[tuple[str, Digest]]:
    """Manifests that only `ours` has and that no differing tag leads to."""
    for path, content in sorted(ours.repositories.items()):
        beyond = content.manifests.keys() - theirs.repository(path).manifests.keys()
        pending = [digest for digest in beyond if (path, digest) in named]
        told = set(pending)
        while pending:
            for child in content.manifests[pending.pop()].children:
                if child.digest in beyond and child.digest not in told:
                    told.add(child.digest)
                    pending.append(child.digest)
        yield from ((path, digest) for digest in sorted(beyond - told))


def _blobs(inventory: Inventory) -> Mapping[Digest, int]:
    """Every distinct blob, in no order: sorting them would take most of the time."""
    sizes: dict[Digest, int] = {}
    for content in inventory.repositories.values():
        sizes.update(content.blobs)
    return sizes


def _bytes_beyond(ours: Mapping[Digest, int], theirs: Mapping[Digest, int]) -> int:
    return sum(size for digest, size in ours.items() if digest not in theirs)


Tags = Mapping[str, Mapping[str, Digest]]
"""Repository → tag → digest."""


def tags_of(inventory: Inventory) -> Tags:
    """The tags of every repository."""
    return {path: content.tags for path, content in inventory.repositories.items() if content.tags}


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
    found = {
        path: {
            tag: digest for tag, digest in one.items() if others.get(path, {}).get(tag) != digest
        }
        for path, one in tags.items()
    }
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
        return bool(self.added or self.changed or self.removed)


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
