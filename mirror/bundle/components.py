"""Components of a release tree as a bundle has them: their versions, and where channels lead.

Which component a repository belongs to follows from its path (docs/bundle-format.md), and which
version a channel leads to from the image that both name: no layer is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import semver

from mirror.oci import Digest
from mirror.sync import Inventory, RepositoryContent

KINDS = ("platform", "installer", "security", "module", "package", "plugin", "other")
"""What a component can be, in the order in which they are listed."""

_PLATFORM = frozenset({"", "install", "install-standalone", "release-channel"})
BY_DIGEST = re.compile(r"[0-9a-f]{64}|sha256-[0-9a-f]{64}(\..*)?")
"""Tags of images that are referenced by digest, and of what is attached to such images."""


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


def component_of(path: str) -> tuple[str, str]:
    """(kind, name) of what a repository belongs to."""
    match path.split("/"):
        case _ if path in _PLATFORM:
            return "platform", "platform"
        case ["installer"]:
            return "installer", "installer"
        case ["security", name]:
            return "security", name
        case ["modules", name, *_]:
            return "module", name
        case ["packages", name, *_]:
            return "package", name
        case ["deckhouse-cli", "plugins", name]:
            return "plugin", name
    return "other", path


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
            versions=_newest_first(_versions(kind, contents)),
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
        if not _of_channels(path) and "/extra/" not in path
        for tag in content.tags
        if not BY_DIGEST.fullmatch(tag)
    }
    numbered = {tag for tag in tags if _precedence(tag) is not None}
    return numbered if kind in ("platform", "module", "package") else tags


def _channels(contents: Mapping[str, RepositoryContent]) -> dict[str, tuple[str, ...]]:
    """Channel → versions, the channels of the newest versions first."""
    channels: dict[str, tuple[str, ...]] = {}
    for path, content in contents.items():
        if not _of_channels(path):
            continue
        versions: dict[Digest, list[str]] = {}
        for tag, digest in content.tags.items():
            if _precedence(tag) is not None:
                versions.setdefault(digest, []).append(tag)
        for tag, digest in sorted(content.tags.items()):
            if _precedence(tag) is None and not BY_DIGEST.fullmatch(tag):
                channels[tag] = _newest_first(versions.get(digest, ()))
    order = _newest_first({version for led in channels.values() for version in led})
    rank = {version: number for number, version in enumerate(order)}
    return dict(
        sorted(channels.items(), key=lambda item: rank[item[1][0]] if item[1] else len(rank))
    )


def _of_channels(path: str) -> bool:
    """Whether a repository holds releases, which channels and versions name, and not images."""
    match path.split("/"):
        case ["release-channel"] | ["modules", _, "release"] | ["packages", _, "version"]:
            return True
    return False


def _precedence(tag: str) -> semver.Version | None:
    """The version that a tag spells (semver.org, with or without `v`), or None."""
    try:
        return semver.Version.parse(tag.removeprefix("v"))
    except ValueError:
        return None


def _newest_first(tags: Iterable[str]) -> tuple[str, ...]:
    """Versions in falling precedence, then all other tags by name."""
    parsed = {tag: _precedence(tag) for tag in sorted(tags)}
    numbered = [(version, tag) for tag, version in parsed.items() if version is not None]
    others = [tag for tag, version in parsed.items() if version is None]
    numbered.sort(key=lambda one: one[0], reverse=True)
    return (*(tag for _, tag in numbered), *others)
