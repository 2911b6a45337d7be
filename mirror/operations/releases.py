"""What a release tree publishes, as a cluster's controller asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from semver import Version

from mirror.errors import RegistryNotFoundError
from mirror.layout import CHANNELS, RELEASE_CHANNEL, tags_of_versions
from mirror.oci import Digest
from mirror.operations.images import read_image
from mirror.release.discovery import CHANGELOG_YAML, parse_changelog
from mirror.release.source import VERSION_JSON, ReleaseInfo, parse_release
from mirror.sync.tree import RegistryTree


@dataclass(frozen=True, slots=True)
class Release:
    """A release, as its image describes it.

    Attributes:
        digest: what the tag names.
        changelog: `changelog.yaml`: module → its changes; empty without that file.
    """

    info: ReleaseInfo
    digest: Digest
    changelog: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "changelog", MappingProxyType(dict(self.changelog)))

    @property
    def version(self) -> Version:
        """The version that its `version.json` names."""
        return self.info.version


@dataclass(frozen=True, slots=True)
class ReleaseList:
    """The versions that are published, the newest last, and where each release channel leads."""

    versions: tuple[Version, ...]
    channels: Mapping[str, Version]

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", MappingProxyType(dict(self.channels)))


def read_release(tree: RegistryTree, tag: str, repository: str = RELEASE_CHANNEL) -> Release:
    """What a release channel or a version (`stable`, `v1.70.1`) leads to.

    `repository` is the platform's `release-channel`, or `modules/<name>/release` and
    `packages/<name>/version`.

    Raises:
        SourceContentError: the image has no `version.json`, or what it says cannot be read.
        DigestMismatchError, SizeMismatchError: a layer is damaged wherever it can be had.
        RegistryNotFoundError: this channel or version does not exist.
        RegistryError: the registry does not answer.
    """
    place = tree.locate(repository)
    digest = tree.client.manifest(place, tag).digest
    found = read_image(tree.client, place, digest, (VERSION_JSON, CHANGELOG_YAML))
    where = f"{tree.name}/{repository}:{tag}"
    of_platform = repository == RELEASE_CHANNEL
    info = parse_release(found.get(VERSION_JSON), where, version_only=not of_platform)
    return Release(info, digest, parse_changelog(found.get(CHANGELOG_YAML, b""), where))


def list_releases(tree: RegistryTree, repository: str = RELEASE_CHANNEL) -> ReleaseList:
    """All versions of the platform, or of what `repository` belongs to, and all its channels.

    Raises:
        what `read_release` raises, for one of the channels.
    """
    tags = tree.client.tags(tree.locate(repository))
    versions = tags_of_versions(tags)
    channels = {}
    for name in CHANNELS:
        if name in tags:
            try:
                channels[name] = read_release(tree, name, repository).version
            except RegistryNotFoundError:  # it went in the meantime
                continue
    return ReleaseList(tuple(versions), channels)
