"""The platform: which of its releases belong in a bundle, and every image that they consist of.

The first half decides, from facts about the source alone; the second asks for the facts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from semver import Version

from mirror.errors import NotFoundError, SourceContentError
from mirror.layout import (
    CHANNELS,
    DEFAULT_CHANNELS,
    INSTALL,
    INSTALL_STANDALONE,
    LTS,
    RELEASE_CHANNEL,
    RELEASES_FILE,
    in_order,
    latest_patches,
    parse_version,
    tags_of_versions,
    version_tag,
)
from mirror.release.constraints import Constraint, find_by_probing
from mirror.release.images import WantedImage
from mirror.release.metadata import (
    CHANGELOG_YAML,
    IMAGES_DIGESTS,
    IMAGES_TAGS,
    VERSION_JSON,
    DescribedRelease,
    deckhouse_releases,
    parse_changelog,
    parse_component_digests,
    parse_component_tags,
    parse_release,
)
from mirror.release.selection import PlatformSelection, select_versions
from mirror.release.source import ChannelFact, ReleaseSource, can_lead, read_channel

_NEWEST, _OLDEST = DEFAULT_CHANNELS[0], DEFAULT_CHANNELS[-1]


@dataclass(frozen=True, slots=True)
class SelectedReleases:
    """The releases to take, oldest first, and the channels that may travel with them.

    `channels` lead to versions of the selection only. `custom_tags` are wanted like versions, but
    are none. `aliases` says which channels a bundle with a pinned tag publishes: channel → the tag
    of the release-channel repository whose image it gets; they win over `channels`.
    """

    versions: tuple[Version, ...]
    channels: tuple[ChannelFact, ...]
    custom_tags: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    """The tag of each of `versions`, in their order, as the source spells it."""


def select_platform(
    channels: Mapping[str, ChannelFact],
    tags: Collection[str],
    wanted: PlatformSelection | None = None,
) -> SelectedReleases:
    """Choose releases among those that `channels` and `tags` say exist.

    `channels` are those that exist, `tags` the tags of the release-channel repository. The order
    of either does not matter.

    * Nothing asked: every channel's version, and between rock-solid and alpha the latest patch of
      each minor version, so that a cluster can update step by step. Whatever is older than
      rock-solid stays out. `since_version` begins earlier.
    * A constraint: of what it accepts every channel's version, the latest patch of each minor
      version, and its inclusive bounds. A channel behind rock-solid does not travel.
    * A tag: that release alone, whatever the channels say, and the channels that lead to it.

    Raises:
        NotFoundError: nothing at the source is what was asked for.
        SourceContentError: channels are missing, or suspended ones are not to be ignored.
    """
    wanted = wanted or PlatformSelection()
    check_channels(channels, wanted.tag)
    if wanted.tag is not None:
        return _pinned(channels, tags, wanted.tag, ignore_suspend=wanted.ignore_suspend)
    missing = [name for name in DEFAULT_CHANNELS if name not in channels]
    if missing and LTS not in channels:
        raise SourceContentError(
            f"the source publishes no release channel {', '.join(missing)} "
            f"(found: {', '.join(_named(channels))}); check that --source names an edition, such "
            "as registry.example.com/deckhouse/ee, or name one release with --deckhouse-tag"
        )
    every = [channels[name] for name in _named(channels)]
    if not wanted.ignore_suspend:
        _refuse_suspended(every)
    if wanted.constraint is not None:
        return _constrained(every, tags, wanted.constraint)
    return _current(every, tags, wanted.since_version)


def check_channels(available: Collection[str], tag: str | None = None) -> None:
    """Check that the source publishes the channels that a pull starts from. `tag` is pinned.

    A pinned tag that does not name a channel needs no channel.

    Raises:
        NotFoundError: the source publishes no channel at all, or not the one that `tag` names.
    """
    if tag is not None and tag not in CHANNELS:
        return
    found = _named(available)
    if not found:
        raise NotFoundError(
            f"the source publishes no release channel: none of {', '.join(CHANNELS)} is there; "
            "check that --source names an edition, such as registry.example.com/deckhouse/ee, and "
            "that your licence covers it, or name one release with --deckhouse-tag"
        )
    if tag is not None and tag not in found:
        raise NotFoundError(
            f"the source publishes no release channel {tag} (available: {', '.join(found)}); "
            "name one of these, or a version, with --deckhouse-tag"
        )


def _named(available: Collection[str]) -> list[str]:
    """The channels among `available`, in their usual order."""
    return [name for name in CHANNELS if name in available]


def _refuse_suspended(channels: Iterable[ChannelFact]) -> None:
    names = sorted(f'"{fact.name}"' for fact in channels if fact.suspended)
    if names:
        plural = len(names) > 1
        raise SourceContentError(
            f"release channel{'s' if plural else ''} {', '.join(names)} "
            f"{'are' if plural else 'is'} suspended at the source: the vendor asks not to install "
            f"{'their versions' if plural else 'its version'}; wait, or take "
            f"{'them' if plural else 'it'} all the same with --ignore-suspend"
        )


def _pinned(
    channels: Mapping[str, ChannelFact],
    tags: Collection[str],
    tag: str,
    *,
    ignore_suspend: bool,
) -> SelectedReleases:
    version = parse_version(tag)
    matched = [
        fact
        for fact in (channels[name] for name in _named(channels))
        if fact.name == tag or (version is not None and fact.version == version)
    ]
    if not ignore_suspend:
        _refuse_suspended(matched)
    versions = [fact.version for fact in matched] + ([version] if version is not None else [])
    custom = () if version is not None or tag in CHANNELS else (tag,)
    # People may type a version without the v of its tag.
    release = tag
    if version is not None and tag not in tags:
        release = tags_of_versions(tags).get(version, version_tag(version))
    aliases: dict[str, str] = {}
    warnings: list[str] = []
    if release in tags or release in channels:
        aliases = dict.fromkeys(DEFAULT_CHANNELS, release)
    else:
        warnings.append(
            f"the source's release-channel repository has no tag {release}, so the bundle gets no "
            "release channels for it; a cluster can be installed from it, but not follow a channel"
        )
    return _selection(versions, matched, tags, custom, aliases, warnings)


def _constrained(
    channels: Collection[ChannelFact], tags: Collection[str], constraint: Constraint
) -> SelectedReleases:
    versions = [fact.version for fact in channels if constraint.accepts(fact.version)]
    spelled = {tag: version for version, tag in tags_of_versions(tags).items()}
    versions += [spelled[tag] for tag in select_versions(constraint, tags)]
    if not versions:
        offered = [fact.version for fact in channels] + list(spelled.values())
        raise NotFoundError(
            f"the source has no platform release that fits {constraint}; it offers "
            f"{version_tag(min(offered))} to {version_tag(max(offered))}"
        )
    return _selection(versions, channels, tags)


def _current(
    channels: Collection[ChannelFact], tags: Collection[str], since: Version | None
) -> SelectedReleases:
    of = {fact.name: fact.version for fact in channels}
    # Where only some of the channels are published, the oldest stands in for rock-solid.
    oldest = of.get(_OLDEST) or min(
        (of[name] for name in DEFAULT_CHANNELS if name in of), default=None
    )
    start = oldest or of[LTS]
    warnings: list[str] = []
    if since is not None and since > start:
        warnings.append(
            f"--since-version {since} is ignored: all from {version_tag(start)} on is taken "
            f"anyway, which is older; to take less, use --include-platform '>={since}' instead"
        )
    elif since is not None:
        start = since
    end = of.get(_NEWEST)
    if end is None and since is not None:
        end = max(of.values())
    versions = [fact.version for fact in channels if oldest is None or fact.version >= start]
    if end is not None:
        between = [version for version in tags_of_versions(tags) if start <= version <= end]
        versions += latest_patches(between, releases_first=True)
    return _selection(versions, channels, tags, warnings=warnings)


def _selection(
    versions: Iterable[Version],
    channels: Collection[ChannelFact],
    tags: Collection[str],
    custom_tags: tuple[str, ...] = (),
    aliases: Mapping[str, str] | None = None,
    warnings: Iterable[str] = (),
) -> SelectedReleases:
    """Put `versions` in order, and add the channels that may travel with them.

    A channel travels if it leads to one of `versions` that is not older than rock-solid's, where
    rock-solid is among `channels`.
    """
    chosen = in_order(versions)
    last = next((fact.version for fact in channels if fact.name == _OLDEST), None)
    kept = [
        fact
        for fact in channels
        if fact.version in chosen and (last is None or fact.version >= last)
    ]
    spelled = tags_of_versions(tags)
    return SelectedReleases(
        tuple(chosen),
        tuple(kept),
        custom_tags,
        aliases or {},
        tuple(warnings),
        tuple(spelled.get(version, version_tag(version)) for version in chosen),
    )


# -- what the source says -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SelectedPlatform:
    """The platform's part of a bundle, with the file that describes its releases to a cluster."""

    selection: SelectedReleases
    images: tuple[WantedImage, ...]
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def channels(self) -> tuple[str, ...]:
        """The release channels in the bundle, in their usual order."""
        named = {fact.name for fact in self.selection.channels} | set(self.selection.aliases)
        return tuple(name for name in CHANNELS if name in named)


def select_platform_images(
    source: ReleaseSource, wanted: PlatformSelection, *, probing: bool
) -> SelectedPlatform:
    """Select releases, and every image that they consist of.

    Raises:
        NotFoundError, SourceContentError: as `select_platform`; or an image does not describe its
            release as it must.
    """
    channels, tags = _facts(source, wanted, probing=probing)
    selection = select_platform(channels, tags, wanted)
    for warning in selection.warnings:
        source.warn(warning)
    releases = (*selection.tags, *selection.custom_tags)
    # All aliases lead to one release image.
    for tag in set(selection.aliases.values()):
        if not can_lead(source, RELEASE_CHANNEL, tag, releases, source.warn):
            selection = replace(selection, aliases={})
    pinned = wanted.tag is not None
    images = [
        WantedImage.of(RELEASE_CHANNEL, fact.name, f"channel {fact.name}", fact.digest)
        for fact in selection.channels
        if fact.name not in selection.aliases
    ]
    images += [
        WantedImage.of(RELEASE_CHANNEL, channel, f"--deckhouse-tag {tag}", tag, optional=True)
        for channel, tag in selection.aliases.items()
    ]
    for tag in releases:
        images += _release_images(tag, described=not pinned)
    listed = source.each("component lists", releases, lambda tag: _components(source, tag))
    # A component of several releases is taken once, in the name of the first of them.
    components = {wanted.tag: wanted for of_release in reversed(listed) for wanted in of_release}
    images += components.values()
    files = {} if pinned else _described(source, selection.tags)
    return SelectedPlatform(selection, tuple(images), files)


def _facts(
    source: ReleaseSource, wanted: PlatformSelection, *, probing: bool
) -> tuple[dict[str, ChannelFact], Collection[str]]:
    """Ask which channels exist and where they lead, and for the tags that spell versions."""
    listed = None if probing else _listed(source, wanted)
    names = [name for name in CHANNELS if listed is None or name in listed]
    if listed is not None:
        check_channels(names, wanted.tag)
    facts = source.each(
        "release channels", names, lambda name: read_channel(source, RELEASE_CHANNEL, name)
    )
    channels = {fact.name: fact for fact in facts if fact is not None}
    return channels, _probed(source, wanted) if listed is None else listed


def _listed(source: ReleaseSource, wanted: PlatformSelection) -> frozenset[str]:
    tags = source.tags(RELEASE_CHANNEL)
    if tags is None and (wanted.tag is None or wanted.tag in CHANNELS):
        raise SourceContentError(
            f"{source.tree.origin(RELEASE_CHANNEL)} does not exist; check that --source names an "
            "edition's repository, and that your licence covers it; a source that cannot list "
            "tags, such as a proxy, takes --proxy-registry"
        )
    return tags or frozenset()


def _probed(source: ReleaseSource, wanted: PlatformSelection) -> list[str]:
    """The versions of a source that cannot list tags, found by trying."""
    if wanted.constraint is None:
        pinned = wanted.tag is not None and source.manifest(RELEASE_CHANNEL, wanted.tag)
        return [wanted.tag] if wanted.tag is not None and pinned else []
    return [
        version_tag(version)
        for version in find_by_probing(
            wanted.constraint,
            lambda version: source.manifest(RELEASE_CHANNEL, version_tag(version)) is not None,
        )
    ]


def _release_images(tag: str, *, described: bool) -> list[WantedImage]:
    """A release's own images. One that is `described` to clusters must have a release image."""
    why = f"platform release {tag}"
    return [
        WantedImage.of("", tag, why),
        WantedImage.of(INSTALL, tag, why),
        WantedImage.of(INSTALL_STANDALONE, tag, why, optional=True),
        WantedImage.of(RELEASE_CHANNEL, tag, why, optional=not described, notable=True),
    ]


def _components(source: ReleaseSource, tag: str) -> list[WantedImage]:
    """The images that a release's installer lists."""
    where = source.where(INSTALL, tag)
    installer = source.required(INSTALL, tag, f"platform release {tag}")
    found = source.files(INSTALL, installer, (IMAGES_DIGESTS, IMAGES_TAGS))
    if IMAGES_TAGS in found:
        # Old releases list tags, and that list counts even if a list of digests lies beside it.
        by_tag = parse_component_tags(found[IMAGES_TAGS], where)
        if by_tag:
            return [
                WantedImage.of("", name, f"component {component} of installer {where}")
                for name, component in by_tag.items()
            ]
    if IMAGES_DIGESTS not in found:
        raise SourceContentError(
            f"{where}: the installer has neither {IMAGES_DIGESTS} nor {IMAGES_TAGS}, so the "
            "release's components are not known"
        )
    return [
        WantedImage.by_digest("", digest, f"component {component} of installer {where}")
        for digest, component in parse_component_digests(found[IMAGES_DIGESTS], where).items()
    ]


def _described(source: ReleaseSource, tags: Collection[str]) -> dict[str, bytes]:
    """Write the file that describes the releases to a cluster, from their release images."""

    def describe(tag: str) -> DescribedRelease:
        where = source.where(RELEASE_CHANNEL, tag)
        manifest = source.required(RELEASE_CHANNEL, tag, f"platform release {tag}")
        found = source.files(RELEASE_CHANNEL, manifest, (VERSION_JSON, CHANGELOG_YAML))
        info = parse_release(found.get(VERSION_JSON), where)
        return DescribedRelease(info, parse_changelog(found.get(CHANGELOG_YAML, b""), where))

    releases = source.each("release descriptions", tags, describe)
    return {RELEASES_FILE: deckhouse_releases(releases)} if releases else {}
