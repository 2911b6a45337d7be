"""Tags as values: what names what, and in what one state differs from another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mirror.oci import Digest
from mirror.sync.inventory import Inventory
from mirror.sync.nodes import RepositoryContent

Tags = Mapping[str, Mapping[str, Digest]]
"""Repository → tag → digest."""


def tags_of(inventory: Inventory) -> Tags:
    """The tags of every repository."""
    return {path: content.tags for path, content in inventory.repositories.items() if content.tags}


def tags_only(tags: Tags) -> Inventory:
    """An inventory of these tags and nothing that they lead to: for comparing and setting tags."""
    return Inventory({path: RepositoryContent(dict(one)) for path, one in tags.items() if one})


def laid_over(below: Tags, above: Tags) -> Tags:
    """All tags of both; where they differ, those of `above`."""
    return {
        path: {**below.get(path, {}), **above.get(path, {})} for path in sorted({*below, *above})
    }


def differing(tags: Tags, others: Tags) -> Tags:
    """Those of `tags` that `others` lacks or has otherwise."""
    found = {
        path: {
            tag: digest for tag, digest in one.items() if others.get(path, {}).get(tag) != digest
        }
        for path, one in tags.items()
    }
    return {path: one for path, one in found.items() if one}


def unaccounted(held: Tags, *known: Tags) -> Tags:
    """What of `held` none of `known` says: tags that somebody else set."""
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
    """What `after` has new, otherwise, and no longer."""
    old, new = (
        {(path, tag): digest for path, tags in state.items() for tag, digest in tags.items()}
        for state in (before, after)
    )
    return TagChanges(
        tuple(sorted(new.keys() - old.keys())),
        tuple(sorted(one for one in new.keys() & old.keys() if new[one] != old[one])),
        tuple(sorted(old.keys() - new.keys())),
    )
