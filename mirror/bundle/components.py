"""Components of a release tree as a bundle has them: their versions, and where channels lead.

Which component a repository belongs to follows from its path (docs/bundle-format.md), and which
version a channel leads to from the image that both name: no layer is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mirror.layout import (
    KINDS,
    component_of,
    holds_releases,
    is_digest_tag,
    parse_version,
    tags_newest_first,
)
from mirror.oci import Digest
from mirror.sync import Inventory, RepositoryContent


@dataclass(frozen=True, slots=True)
class ComponentInsight:
    """The platform, a module, a package and so on, over all its repositories.

    `versions` are newest first. `channels` maps each to the versions that it leads to: those that
    have the same image in the repository of channels, none where no version there has it.
    """

    kind: str
    name: str
    versions: tuple[str, ...]
    channels: Mapping[str, tuple[str, ...]]
    images: int
    size: int

    def to_document(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "versions": list(self.versions),
            "channels": {channel: list(versions) for channel, versions in self.channels.items()},
            "images": self.images,
            "bytes": self.size,
        }


def components(total: Inventory, sizes: Iterable[tuple[str, int]]) -> tuple[ComponentInsight, ...]:
    """Every component of which `total` has repositories, by kind and name.

    `sizes` are (repository path, bytes) of all layouts, of which a repository may have several.
    """
    taken: Counter[tuple[str, str]] = Counter()
    for path, size in sizes:
        taken[component_of(path)] += size
    by_component: dict[tuple[str, str], dict[str, RepositoryContent]] = {}
    for path, content in total.repositories.items():
        by_component.setdefault(component_of(path), {})[path] = content
    return tuple(
        ComponentInsight(
            kind,
            name,
            versions=tags_newest_first(_versions(kind, contents)),
            channels=_channels(contents),
            images=len({digest for one in contents.values() for digest in one.tags.values()}),
            size=taken[kind, name],
        )
        for (kind, name), contents in sorted(
            by_component.items(), key=lambda item: (KINDS.index(item[0][0]), item[0][1])
        )
    )


def _versions(kind: str, contents: Mapping[str, RepositoryContent]) -> set[str]:
    """Tags that are versions of a component's images; of databases and the like, all tags."""
    tags = {
        tag
        for path, content in contents.items()
        if not holds_releases(path) and "/extra/" not in path
        for tag in content.tags
        if not is_digest_tag(tag)
    }
    numbered = {tag for tag in tags if parse_version(tag) is not None}
    return numbered if kind in ("platform", "module", "package") else tags


def _channels(contents: Mapping[str, RepositoryContent]) -> dict[str, tuple[str, ...]]:
    """Channel → versions, the channels of the newest versions first."""
    channels: dict[str, tuple[str, ...]] = {}
    for path, content in contents.items():
        if not holds_releases(path):
            continue
        versions: dict[Digest, list[str]] = {}
        for tag, digest in content.tags.items():
            if parse_version(tag) is not None:
                versions.setdefault(digest, []).append(tag)
        for tag, digest in sorted(content.tags.items()):
            if parse_version(tag) is None and not is_digest_tag(tag):
                channels[tag] = tags_newest_first(versions.get(digest, ()))
    order = tags_newest_first({version for led in channels.values() for version in led})
    rank = {version: number for number, version in enumerate(order)}
    return dict(
        sorted(channels.items(), key=lambda item: rank[item[1][0]] if item[1] else len(rank))
    )
