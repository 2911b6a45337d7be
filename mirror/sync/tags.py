"""Tags as values: what names what, and in what one state differs from another."""

from __future__ import annotations

from collections.abc import Mapping

from mirror.oci import Digest
from mirror.sync.inventory import Inventory, RepositoryContent

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
