"""The platform: its releases, their installers and components."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import yaml

from mirror.bundle.format import RELEASES
from mirror.errors import SourceContentError
from mirror.layout import (
    CHANNELS,
    INSTALL,
    INSTALL_STANDALONE,
    RELEASE_CHANNEL,
    archive_of,
    version_tag,
)
from mirror.release.deckhouse_releases import DescribedRelease, deckhouse_releases
from mirror.release.metadata import (
    CHANGELOG_YAML,
    IMAGES_DIGESTS,
    IMAGES_TAGS,
    VERSION_JSON,
    parse_changelog,
    parse_component_digests,
    parse_component_tags,
    parse_release,
)
from mirror.release.phases.channels import can_lead, read_channel
from mirror.release.platform import (
    ChannelFact,
    PlatformSelection,
    PlatformWishes,
    check_channels,
    select_platform,
)
from mirror.release.selection import Wanted
from mirror.release.source import ReleaseSource
from mirror.release.walk import walk

_ARCHIVE = archive_of("")


@dataclass(frozen=True, slots=True)
class PlatformPhase:
    """What of the platform travels, and the file that describes its releases to a cluster."""

    selection: PlatformSelection
    images: tuple[Wanted, ...]
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def channels(self) -> tuple[str, ...]:
        """The release channels in the bundle, in their usual order."""
        named = {fact.name for fact in self.selection.channels} | set(self.selection.aliases)
        return tuple(name for name in CHANNELS if name in named)


def select_platform_images(
    source: ReleaseSource, wishes: PlatformWishes, *, probing: bool
) -> PlatformPhase:
    """The releases that `wishes` select, and every image that they consist of.

    Raises:
        NotFoundError, SourceContentError: as `select_platform` says, or an image says less of its
            release than it must.
    """
    channels, tags = _facts(source, wishes, probing=probing)
    selection = select_platform(channels, tags, wishes)
    for warning in selection.warnings:
        source.warn(warning)
    releases = (*selection.tags, *selection.custom_tags)
    # One release image stands behind all of them.
    for tag in set(selection.aliases.values()):
        if not can_lead(source, RELEASE_CHANNEL, tag, releases, source.warn):
            selection = replace(selection, aliases={})
    pinned = wishes.tag is not None
    images = [
        Wanted(_ARCHIVE, RELEASE_CHANNEL, fact.name, fact.digest, f"channel {fact.name}")
        for fact in selection.channels
        if fact.name not in selection.aliases
    ]
    images += [
        Wanted(_ARCHIVE, RELEASE_CHANNEL, channel, tag, f"--deckhouse-tag {tag}", optional=True)
        for channel, tag in selection.aliases.items()
    ]
    for tag in releases:
        images += _release_images(tag, described=not pinned)
    listed = source.each("component lists", releases, lambda tag: _components(source, tag))
    # A component of several releases is wanted once, and named for the first that has it.
    components = {wanted.tag: wanted for of_release in reversed(listed) for wanted in of_release}
    images += components.values()
    files = {} if pinned else _described(source, selection.tags)
    return PlatformPhase(selection, tuple(images), files)


def _facts(
    source: ReleaseSource, wishes: PlatformWishes, *, probing: bool
) -> tuple[dict[str, ChannelFact], Collection[str]]:
    """The channels that exist, and the tags that say which versions do."""
    listed = None if probing else _listed(source, wishes)
    names = [name for name in CHANNELS if listed is None or name in listed]
    if listed is not None:
        check_channels(names, wishes.tag)
    facts = source.each(
        "release channels", names, lambda name: read_channel(source, RELEASE_CHANNEL, name)
    )
    channels = {fact.name: fact for fact in facts if fact is not None}
    return channels, _probed(source, wishes) if listed is None else listed


def _listed(source: ReleaseSource, wishes: PlatformWishes) -> frozenset[str]:
    tags = source.tags(RELEASE_CHANNEL)
    if tags is None and (wishes.tag is None or wishes.tag in CHANNELS):
        raise SourceContentError(
            f"{source.tree.origin(RELEASE_CHANNEL)} does not exist; check that --source names an "
            "edition's repository, and that your licence covers it; a source that cannot list "
            "tags, such as a proxy, takes --proxy-registry"
        )
    return tags or frozenset()


def _probed(source: ReleaseSource, wishes: PlatformWishes) -> list[str]:
    """The versions that a source without tag lists turns out to have."""
    if wishes.constraint is None:
        pinned = wishes.tag is not None and source.manifest(RELEASE_CHANNEL, wishes.tag)
        return [wishes.tag] if wishes.tag is not None and pinned else []
    return [
        version_tag(version)
        for version in walk(
            wishes.constraint,
            lambda version: source.manifest(RELEASE_CHANNEL, version_tag(version)) is not None,
        )
    ]


def _release_images(tag: str, *, described: bool) -> list[Wanted]:
    """A release's own images; one that is `described` must have a release image too."""
    why = f"platform release {tag}"
    return [
        Wanted(_ARCHIVE, "", tag, tag, why),
        Wanted(_ARCHIVE, INSTALL, tag, tag, why),
        Wanted(_ARCHIVE, INSTALL_STANDALONE, tag, tag, why, optional=True),
        Wanted(
            _ARCHIVE,
            RELEASE_CHANNEL,
            tag,
            tag,
            why,
            optional=not described,
            notable=True,
        ),
    ]


def _components(source: ReleaseSource, tag: str) -> list[Wanted]:
    """The images that a release's installer lists."""
    where = source.where(INSTALL, tag)
    installer = source.required(INSTALL, tag, f"platform release {tag}")
    found = source.files(INSTALL, installer, (IMAGES_DIGESTS, IMAGES_TAGS))
    if IMAGES_TAGS in found:
        # Old releases list tags; their list counts even where a list of digests lies beside it.
        by_tag = parse_component_tags(found[IMAGES_TAGS], where)
        if by_tag:
            return [
                Wanted(_ARCHIVE, "", name, name, f"component {component} of installer {where}")
                for name, component in by_tag.items()
            ]
    if IMAGES_DIGESTS not in found:
        raise SourceContentError(
            f"{where}: the installer has neither {IMAGES_DIGESTS} nor {IMAGES_TAGS}, so the "
            "release's components are not known"
        )
    return [
        Wanted.by_digest(_ARCHIVE, "", digest, f"component {component} of installer {where}")
        for digest, component in parse_component_digests(found[IMAGES_DIGESTS], where).items()
    ]


def _described(source: ReleaseSource, tags: Collection[str]) -> dict[str, bytes]:
    """The file of releases for the cluster, from their release images."""

    def describe(tag: str) -> DescribedRelease:
        where = source.where(RELEASE_CHANNEL, tag)
        manifest = source.required(RELEASE_CHANNEL, tag, f"platform release {tag}")
        found = source.files(RELEASE_CHANNEL, manifest, (VERSION_JSON, CHANGELOG_YAML))
        info = parse_release(found.get(VERSION_JSON), where)
        release = DescribedRelease(info, parse_changelog(found.get(CHANGELOG_YAML, b""), where))
        try:
            deckhouse_releases([release])
        except (yaml.YAMLError, ValueError, RecursionError) as err:
            told = f"{where}: {CHANGELOG_YAML} cannot be written down again: {err}"
            raise SourceContentError(told) from err
        return release

    releases = source.each("release descriptions", tags, describe)
    return {RELEASES: deckhouse_releases(releases)} if releases else {}
