"""The platform: which of its releases belong in a bundle, and every image that they consist of.

The first half decides, from facts about the source alone; the second asks for the facts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from semver import Version

from mirror.errors import DeniedError, NotFoundError, RegistryError, SourceContentError
from mirror.layout import (
    CHANNELS,
    DEFAULT_CHANNELS,
    EDITIONS,
    INSTALL,
    INSTALL_STANDALONE,
    LTS,
    RELEASE_CHANNEL,
    in_order,
    join_path,
    latest_patches,
    parse_version,
    tags_of_versions,
    version_tag,
)
from mirror.release.constraints import Constraint
from mirror.release.discovery import (
    IMAGES_DIGESTS,
    IMAGES_TAGS,
    ChannelFact,
    can_lead,
    components_of,
    read_channel,
    releases_file,
)
from mirror.release.selection import PlatformSelection, WantedImage, select_versions
from mirror.release.source import ReleaseSource, answers, probed_tags

_NEWEST, _OLDEST = DEFAULT_CHANNELS[0], DEFAULT_CHANNELS[-1]


@dataclass(frozen=True, slots=True)
class SelectedReleases:
    """The releases to take, oldest first, and the channels that may travel with them.

    `channels` lead to versions of the selection only. `custom_tags` are wanted tags that name no
    version. `aliases` says which channels a bundle with a pinned tag publishes: channel → the tag
    of the release-channel repository whose image it gets; they win over `channels`.
    """

    versions: tuple[Version, ...] = ()
    channels: tuple[ChannelFact, ...] = ()
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
    """Choose releases among those that exist, whatever the order in which they are given.

    `channels` are those of the source, `tags` the tags of its release-channel repository.

    * Nothing asked: every channel's version, and between rock-solid and alpha the latest patch of
      each minor version, so that a cluster can update step by step. Whatever is older than
      rock-solid stays out, but for the version of lts. `since_version` begins earlier.
    * A constraint: of what it accepts every channel's version, the latest patch of each minor
      version, and its inclusive bounds. A channel behind rock-solid does not travel, but lts does.
    * A tag: that release alone, whatever the channels say, and the channels that lead to it.

    Raises:
        NotFoundError: nothing at the source is what was asked for.
        SourceContentError: channels are missing, or suspended ones are not to be ignored.
    """
    wanted = wanted or PlatformSelection()
    check_channels(channels, wanted.tag)
    concerned = [channels[name] for name in _named(channels)]
    if wanted.tag is not None:
        version = parse_version(wanted.tag)
        concerned = [
            fact
            for fact in concerned
            if fact.name == wanted.tag or (version is not None and fact.version == version)
        ]
    else:
        missing = [name for name in DEFAULT_CHANNELS if name not in channels]
        if missing and LTS not in channels:
            raise SourceContentError(
                f"the source publishes no release channel {', '.join(missing)} "
                f"(found: {', '.join(_named(channels))}); check that --source names an edition, "
                "such as registry.example.com/deckhouse/ee, or name one release with "
                "--deckhouse-tag"
            )
    suspended = sorted(f'"{fact.name}"' for fact in concerned if fact.suspended)
    if suspended and not wanted.ignore_suspend:
        said = f"release channel {suspended[0]} is"
        if len(suspended) > 1:
            said = f"release channels {', '.join(suspended)} are"
        raise SourceContentError(
            f"{said} suspended at the source: the vendor asks not to install what is published "
            "there; wait, or take it all the same with --ignore-suspend"
        )
    if wanted.tag is not None:
        return _pinned(concerned, tags, wanted.tag)
    if wanted.constraint is not None:
        return _constrained(concerned, tags, wanted.constraint)
    return _current(concerned, tags, wanted.since_version)


def check_channels(available: Collection[str], tag: str | None = None) -> None:
    """Check that the source publishes the channels that a pull starts from. `tag` is pinned.

    A pinned tag that does not name a channel needs no channel.
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


def _pinned(matched: Collection[ChannelFact], tags: Collection[str], tag: str) -> SelectedReleases:
    version = parse_version(tag)
    versions = [fact.version for fact in matched] + ([version] if version is not None else [])
    custom = () if version is not None or tag in CHANNELS else (tag,)
    # People may type a version without the v of its tag.
    release = tag
    if version is not None and tag not in tags:
        release = tags_of_versions(tags).get(version, version_tag(version))
    if release in tags or tag in CHANNELS:
        aliases = dict.fromkeys(DEFAULT_CHANNELS, release)
        return _selection(versions, matched, tags, custom, aliases)
    warning = (
        f"the source's release-channel repository has no tag {release}, so the bundle gets no "
        "release channels for it; a cluster can be installed from it, but not follow a channel"
    )
    return _selection(versions, matched, tags, custom, warnings=(warning,))


def _constrained(
    channels: Collection[ChannelFact], tags: Collection[str], constraint: Constraint
) -> SelectedReleases:
    versions = [fact.version for fact in channels if constraint.accepts(fact.version)]
    spelled = {tag: version for version, tag in tags_of_versions(tags).items()}
    versions += [spelled[tag] for tag in select_versions((constraint,), tags)]
    if not versions:
        offered = [fact.version for fact in channels] + list(spelled.values())
        raise NotFoundError(
            f"the source has no platform release that fits {constraint}; it offers "
            f"{version_tag(min(offered))} to {version_tag(max(offered))}"
        )
    accepted = [one for one in channels if constraint.accepts(one.version) or one.name == _OLDEST]
    return _selection(versions, accepted, tags)


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
    versions = [fact.version for fact in channels if fact.name == LTS or fact.version >= start]
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
    """Put `versions` in order, and add those `channels` that lead to one of them.

    A channel that lags behind rock-solid stays out, except for lts, which always does.
    """
    chosen = in_order(versions)
    last = next((fact.version for fact in channels if fact.name == _OLDEST), None)
    kept = [fact for fact in channels if fact.version in chosen]
    if last is not None:
        behind = [fact for fact in channels if fact.version < last and fact.name != LTS]
        kept = [fact for fact in kept if fact not in behind]
        warnings = [
            *warnings,
            *(
                f"release channel {fact.name} is left out: it leads to "
                f"{version_tag(fact.version)}, which is older than rock-solid's "
                f"{version_tag(last)}; take it by itself with --deckhouse-tag {fact.name}"
                for fact in behind
            ),
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

    selection: SelectedReleases = SelectedReleases()
    images: tuple[WantedImage, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def channels(self) -> tuple[str, ...]:
        """The release channels in the bundle, in their usual order."""
        selection = self.selection
        return tuple(_named([*(fact.name for fact in selection.channels), *selection.aliases]))


def select_platform_images(
    source: ReleaseSource, wanted: PlatformSelection, *, probing: bool
) -> SelectedPlatform:
    """Select releases as `select_platform` does, and every image that they consist of."""
    channels, tags = _facts(source, wanted, probing=probing)
    selection = select_platform(channels, tags, wanted)
    for warning in selection.warnings:
        source.warn(warning)
    releases = (*selection.tags, *selection.custom_tags)
    if wanted.tag is not None and not selection.channels:
        _check_published(source, wanted.tag, releases, tags)
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
        why = f"platform release {tag}"
        images += [
            WantedImage.of("", tag, why),
            WantedImage.of(INSTALL, tag, why),
            WantedImage.of(INSTALL_STANDALONE, tag, why, optional=True, notable=True),
            # A release that the bundle describes to clusters must have its release image.
            WantedImage.of(RELEASE_CHANNEL, tag, why, optional=pinned, notable=True),
        ]
    listed = source.each("component lists", releases, lambda tag: _components(source, tag))
    # A component of several releases is taken once, in the name of the first of them.
    components = {wanted.tag: wanted for of_release in reversed(listed) for wanted in of_release}
    images += components.values()
    files = {} if pinned else releases_file(source, selection.tags)
    return SelectedPlatform(selection, tuple(images), files)


def _check_published(
    source: ReleaseSource, tag: str, releases: Collection[str], tags: Collection[str]
) -> None:
    """Raise NotFoundError if nothing at the source goes by a tag that the user named.

    `tags` are those of release images. What one of them promises and is not there is the source's
    fault, not the user's.
    """
    if not set(releases).isdisjoint(tags) or any(
        source.manifest(path, one) is not None for one in releases for path in ("", INSTALL)
    ):
        return
    channels, newest = _named(tags), list(reversed(tags_of_versions(tags).values()))
    near = "".join(
        f" (did you mean {one}?)" for one in get_close_matches(tag, [*channels, *newest], n=1)
    )
    offers = [
        f"its {what} are {', '.join(names)}"
        for what, names in (("release channels", channels), ("newest versions", newest[:5]))
        if names
    ]
    advice = "name one of these with --deckhouse-tag" if offers else _edition_hint(source)
    raise NotFoundError(
        "; ".join([f"the source has no platform release {tag}{near}", *offers, advice])
    )


def _edition_hint(source: ReleaseSource) -> str:
    """What to do where `--source` leads to no edition: name those below its path and beside it."""
    root = source.tree.root
    above = root.path.rpartition("/")[0]
    paths = [join_path(near, one) for near in (root.path, above) for one in sorted(EDITIONS)]

    def is_edition(path: str) -> bool:
        try:
            return any(True for _ in source.content.client.tags(f"{path}/{RELEASE_CHANNEL}"))
        except (RegistryError, DeniedError):  # no answer is none: this only looks for advice
            return False

    answered = answers(source, "editions", paths, is_edition)
    found = [f"{root.host}/{path}" for path, there in answered.items() if there]
    if found:
        verb = "is" if len(found) == 1 else "are"
        return f"check that --source names an edition: there {verb} {', '.join(found)}"
    known = ", ".join(sorted(EDITIONS))
    ending = "" if source.tree.edition else f"{root} ends in no edition ({known}); "
    return (
        f"{ending}check that --source names an edition's repository, and that your licence covers "
        "it"
    )


def _facts(
    source: ReleaseSource, wanted: PlatformSelection, *, probing: bool
) -> tuple[dict[str, ChannelFact], Collection[str]]:
    """Ask which channels exist and where they lead, and for the tags that spell versions."""
    tags: Collection[str] | None = CHANNELS
    if not probing:
        tags = source.tags(RELEASE_CHANNEL)
        if tags is None and (wanted.tag is None or wanted.tag in CHANNELS):
            raise SourceContentError(
                f"{source.tree.origin(RELEASE_CHANNEL)} does not exist; {_edition_hint(source)}; a "
                "source that cannot list tags, such as a proxy, takes --proxy-registry"
            )
        check_channels(tags or (), wanted.tag)
    facts = source.each(
        "release channels",
        _named(tags or ()),
        lambda name: read_channel(source, RELEASE_CHANNEL, name),
    )
    channels = {fact.name: fact for fact in facts if fact is not None}
    return channels, _probed(source, wanted) if probing else tags or ()


def _probed(source: ReleaseSource, wanted: PlatformSelection) -> list[str]:
    """The versions of a source that cannot list tags, found by trying."""

    if wanted.constraint is not None:
        return probed_tags(source, RELEASE_CHANNEL, wanted.constraint)
    tag = wanted.tag
    return [tag] if tag is not None and source.manifest(RELEASE_CHANNEL, tag) is not None else []


def _components(source: ReleaseSource, tag: str) -> list[WantedImage]:
    """The images that a release's installer lists."""
    where = source.where(INSTALL, tag)
    installer = source.required(INSTALL, tag, f"platform release {tag}")
    found = source.files(INSTALL, installer, (IMAGES_DIGESTS, IMAGES_TAGS))
    listed = components_of(found, where)
    if not listed and IMAGES_DIGESTS not in found:
        raise SourceContentError(
            f"{where}: the installer has neither {IMAGES_DIGESTS} nor {IMAGES_TAGS}, so the "
            "release's components are not known"
        )
    return [
        replace(
            WantedImage.of("", name, f"component {component} of installer {where}"),
            component=component,
        )
        for name, component in listed.items()
    ]
