"""Which platform releases belong in a bundle. Pure: facts about the source in, selection out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from semver import Version

from mirror.errors import InputError, NotFoundError, SourceContentError
from mirror.layout import (
    CHANNELS,
    DEFAULT_CHANNELS,
    LTS,
    in_order,
    latest_patches,
    parse_version,
    tags_of_versions,
    version_tag,
)
from mirror.oci import Digest
from mirror.oci.reference import valid_tag
from mirror.release.constraints import Constraint, read_version
from mirror.release.filters import ExactTag, parse_platform, select_versions

_NEWEST, _OLDEST = DEFAULT_CHANNELS[0], DEFAULT_CHANNELS[-1]


@dataclass(frozen=True, slots=True)
class ChannelFact:
    """What one release channel says: the version it leads to, and the image that says so."""

    name: str
    version: Version
    suspended: bool
    digest: Digest


@dataclass(frozen=True, slots=True)
class PlatformWishes:
    """Which releases the user asks for: at most one of the first three; none: what is current.

    `tag` is a channel, a version or any other tag. `ignore_suspend` takes releases although their
    vendor asks not to install them.
    """

    tag: str | None = None
    constraint: Constraint | None = None
    since_version: Version | None = None
    ignore_suspend: bool = False

    def __post_init__(self) -> None:
        given = (self.tag, self.constraint, self.since_version)
        if sum(wish is not None for wish in given) > 1:
            raise ValueError("tag, constraint and since_version exclude each other")

    @classmethod
    def from_flags(
        cls,
        *,
        deckhouse_tag: str | None = None,
        include_platform: str | None = None,
        since_version: str | None = None,
        ignore_suspend: bool = False,
    ) -> PlatformWishes:
        """Read the flags of those names; an exact `--include-platform` is a `--deckhouse-tag`.

        Raises:
            InputError: one of them cannot be understood, or they contradict each other.
        """
        flags = {
            "--deckhouse-tag": deckhouse_tag,
            "--include-platform": include_platform,
            "--since-version": since_version,
        }
        given = [flag for flag, text in flags.items() if text is not None]
        if len(given) > 1:
            raise InputError(
                f"{' and '.join(given)} contradict each other: each says alone which platform "
                "releases to take; keep one of them"
            )
        tag, constraint, since = deckhouse_tag, None, None
        if tag is not None and not valid_tag(tag):
            raise InputError(
                f"--deckhouse-tag {tag[:120]!r} is no tag; write a release channel, a version "
                "such as v1.69.0, or any other tag of the source"
            )
        if include_platform is not None:
            wanted = parse_platform(include_platform)
            if isinstance(wanted, ExactTag):
                tag = wanted.tag
            else:
                constraint = wanted
        if since_version is not None:
            since = read_version(since_version.strip())
            if since is None:
                raise InputError(
                    f"--since-version {since_version[:120]!r} is no version; write one such as 1.64"
                )
        return cls(tag, constraint, since, ignore_suspend)


@dataclass(frozen=True, slots=True)
class PlatformSelection:
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
    wishes: PlatformWishes | None = None,
) -> PlatformSelection:
    """Which releases to take, of all that `channels` and `tags` say there is.

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
    wishes = wishes or PlatformWishes()
    check_channels(channels, wishes.tag)
    if wishes.tag is not None:
        return _pinned(channels, tags, wishes.tag, ignore_suspend=wishes.ignore_suspend)
    missing = [name for name in DEFAULT_CHANNELS if name not in channels]
    if missing and LTS not in channels:
        raise SourceContentError(
            f"the source publishes no release channel {', '.join(missing)} "
            f"(found: {', '.join(_named(channels))}); check that --source names an edition, such "
            "as registry.example.com/deckhouse/ee, or name one release with --deckhouse-tag"
        )
    every = [channels[name] for name in _named(channels)]
    if not wishes.ignore_suspend:
        _refuse_suspended(every)
    if wishes.constraint is not None:
        return _constrained(every, tags, wishes.constraint)
    return _current(every, tags, wishes.since_version)


def check_channels(available: Collection[str], tag: str | None = None) -> None:
    """See that the source publishes what a pull starts from. `tag` is the one that was pinned.

    A pinned tag that is no channel needs none; whether it exists is for its own repository to say.

    Raises:
        NotFoundError: not the channel that was asked for, or no channel at all.
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
    """The channels among some names, in the order that is used everywhere."""
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
) -> PlatformSelection:
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
    # People may leave out the v that the tag has.
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
) -> PlatformSelection:
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
) -> PlatformSelection:
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
) -> PlatformSelection:
    """In order, with those of `channels` that lead to a selected version and not behind rock-solid.

    Only rock-solid among these `channels` counts.
    """
    chosen = in_order(versions)
    last = next((fact.version for fact in channels if fact.name == _OLDEST), None)
    kept = [
        fact
        for fact in channels
        if fact.version in chosen and (last is None or fact.version >= last)
    ]
    spelled = tags_of_versions(tags)
    return PlatformSelection(
        tuple(chosen),
        tuple(kept),
        custom_tags,
        aliases or {},
        tuple(warnings),
        tuple(spelled.get(version, version_tag(version)) for version in chosen),
    )
