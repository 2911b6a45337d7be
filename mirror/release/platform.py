"""The platform: which of its releases belong in a bundle, and every image that they consist of.

The first half decides, from facts about the source alone; the second asks for the facts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml
from semver import Version

from mirror.documents import parse_yaml
from mirror.errors import InvalidDigestError, NotFoundError, SourceContentError
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
from mirror.oci import Digest
from mirror.oci.reference import valid_tag
from mirror.release.constraints import Constraint, find_by_probing
from mirror.release.selection import PlatformSelection, WantedImage, select_versions
from mirror.release.source import (
    VERSION_JSON,
    ChannelFact,
    ReleaseInfo,
    ReleaseSource,
    can_lead,
    json_object,
    parse_release,
    read_channel,
)

CHANGELOG_YAML = "changelog.yaml"
IMAGES_DIGESTS = "deckhouse/candi/images_digests.json"
IMAGES_TAGS = "deckhouse/candi/images_tags.json"

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
    """Put `versions` in order, and add those `channels` that lead to one of them.

    A channel that lags behind rock-solid stays out.
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
            WantedImage.of(INSTALL_STANDALONE, tag, why, optional=True),
            # A release that the bundle describes to clusters must have its release image.
            WantedImage.of(RELEASE_CHANNEL, tag, why, optional=pinned, notable=True),
        ]
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
    names = list(CHANNELS)
    tags: Collection[str] = ()
    if not probing:
        tags = _listed(source, wanted)
        names = _named(tags)
        check_channels(names, wanted.tag)
    facts = source.each(
        "release channels", names, lambda name: read_channel(source, RELEASE_CHANNEL, name)
    )
    channels = {fact.name: fact for fact in facts if fact is not None}
    return channels, _probed(source, wanted) if probing else tags


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

    def exists(tag: str) -> bool:
        return source.manifest(RELEASE_CHANNEL, tag) is not None

    if wanted.constraint is None:
        return [wanted.tag] if wanted.tag is not None and exists(wanted.tag) else []
    found = find_by_probing(wanted.constraint, lambda version: exists(version_tag(version)))
    return [version_tag(version) for version in found]


def _components(source: ReleaseSource, tag: str) -> list[WantedImage]:
    """The images that a release's installer lists."""
    where = source.where(INSTALL, tag)
    installer = source.required(INSTALL, tag, f"platform release {tag}")
    found = source.files(INSTALL, installer, (IMAGES_DIGESTS, IMAGES_TAGS))
    # Old releases list tags, and that list counts even if a list of digests lies beside it.
    listed = parse_components(found.get(IMAGES_TAGS, b"{}"), where, IMAGES_TAGS)
    if not listed and IMAGES_DIGESTS not in found:
        raise SourceContentError(
            f"{where}: the installer has neither {IMAGES_DIGESTS} nor {IMAGES_TAGS}, so the "
            "release's components are not known"
        )
    listed = listed or parse_components(found[IMAGES_DIGESTS], where, IMAGES_DIGESTS)
    return [
        WantedImage.of("", name, f"component {component} of installer {where}")
        for name, component in listed.items()
    ]


def _described(source: ReleaseSource, tags: Collection[str]) -> dict[str, bytes]:
    """Write the file that describes the releases to a cluster, from their release images."""

    def describe(tag: str) -> tuple[ReleaseInfo, Mapping[str, Any]]:
        where = source.where(RELEASE_CHANNEL, tag)
        manifest = source.required(RELEASE_CHANNEL, tag, f"platform release {tag}")
        found = source.files(RELEASE_CHANNEL, manifest, (VERSION_JSON, CHANGELOG_YAML))
        info = parse_release(found.get(VERSION_JSON), where)
        return info, parse_changelog(found.get(CHANGELOG_YAML, b""), where)

    releases = source.each("release descriptions", tags, describe)
    return {RELEASES_FILE: deckhouse_releases(releases)} if releases else {}


def parse_components(data: bytes, where: str, file: str) -> dict[Digest | str, str]:
    """Read an installer's list, in its order: digest, or tag in `IMAGES_TAGS` → `module/image`."""
    found: dict[Digest | str, str] = {}
    for module, images in json_object(data, where, file).items():
        if not isinstance(images, dict):
            raise SourceContentError(f"{where}: {file}: {module}: not a mapping of images")
        for image, text in images.items():
            at = f"{where}: {file}: {module}/{image}"
            if not isinstance(text, str):
                raise SourceContentError(f"{at}: not a string")
            if file == IMAGES_TAGS and not valid_tag(text):
                raise SourceContentError(f"{at}: {text!r} is not a tag")
            try:
                reference = text if file == IMAGES_TAGS else Digest.parse(text)
            except InvalidDigestError as err:
                raise SourceContentError(f"{at}: {err}") from err
            found.setdefault(reference, f"{module}/{image}")
    return found


def parse_changelog(data: bytes, where: str) -> Mapping[str, Any]:
    """A release image's `changelog.yaml`: a mapping of modules to their changes."""
    try:
        document = parse_yaml(data)
    except ValueError as err:
        raise SourceContentError(f"{where}: {CHANGELOG_YAML} cannot be read: {err}") from err
    if not isinstance(document, dict | None):
        raise SourceContentError(f"{where}: {CHANGELOG_YAML} is not a mapping")
    return document or {}


def deckhouse_releases(releases: Iterable[tuple[ReleaseInfo, Mapping[str, Any]]]) -> bytes:
    """Write `deckhousereleases.yaml`, from which a cluster without channels learns its releases.

    `releases` are what their images say in `version.json` and `changelog.yaml`. The file has one
    YAML document per release, oldest first, with sorted keys; each begins with `---`.
    """
    ordered = sorted(releases, key=lambda release: release[0].version)
    text: str = yaml.safe_dump_all(
        [_document(info, changelog) for info, changelog in ordered],
        explicit_start=True,
        allow_unicode=True,
        default_flow_style=False,
    )
    return text.encode()


def _document(info: ReleaseInfo, changelog: Mapping[str, Any]) -> dict[str, Any]:
    tag = version_tag(info.version)
    disruptions = info.disruptions.get(f"{info.version.major}.{info.version.minor}")
    spec = {
        "changelog": dict(changelog),
        "changelogLink": f"https://github.com/deckhouse/deckhouse/releases/tag/{tag}",
        "version": tag,
        **({"disruptions": list(disruptions)} if disruptions else {}),
        **({"requirements": dict(info.requirements)} if info.requirements else {}),
    }
    return {
        "apiVersion": "deckhouse.io/v1alpha1",
        "approved": False,
        "kind": "DeckhouseRelease",
        "metadata": {"name": tag},
        "spec": spec,
        "status": {"approved": False, "message": "", "transitionTime": "0001-01-01T00:00:00Z"},
    }
