"""What a pull is asked for: which platform releases, modules, packages and plugins.

Modules, packages, plugins and the platform are named as `name[@version]`.

The version part is one of

* `=TAG` or `=TAG+channel`: exactly that tag, any tag; a module is then published to the channel
  named, or to all of them;
* a constraint that starts with one of `> < ~ ^` (`mirror.release.constraints`);
* a bare version `X[.Y[.Z]]`: from it on, within its major version;
* nothing: what the release channels lead to.

Naming an item again adds what its version part selects.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from semver import Version

from mirror.errors import InputError
from mirror.layout import CHANNELS, archive_of, latest_patches, parse_version, tags_of_versions
from mirror.oci import Digest, Platform
from mirror.oci.reference import valid_tag
from mirror.release.constraints import Constraint, read_version
from mirror.sync.content import AS_USUAL, ContentRules

_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_MAX_NAME = 128  # a name is a tag too, in the index of what exists
_FORMS = (
    "write =TAG for exactly one tag, a constraint such as '>=1.2 <1.5', '~1.2.3' or '^1.2', or a "
    "version such as 1.2.0 for it and all later ones of its major version"
)
_QUOTE = "the shell takes > and < for redirections unless they are quoted, so write"


@dataclass(frozen=True, slots=True)
class ExactTag:
    """`=TAG[+channel]`: one tag, whatever the source lists. `channel` None means every channel."""

    tag: str
    channel: str | None = None
    ignored: str = field(default="", compare=False)
    """Text behind `+` that is not a release channel. It has no effect, so the user is warned."""

    def __str__(self) -> str:
        return f"={self.tag}" + (f"+{self.channel}" if self.channel else "")


@dataclass(frozen=True, slots=True)
class ItemFilter:
    """One module, package or plugin, and the versions of it that the user named.

    Without `wanted`, its release channels decide.
    """

    name: str
    wanted: tuple[ExactTag | Constraint, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether only exact tags are wanted. Channels and tag lists are then not needed."""
        return bool(self.wanted) and all(isinstance(one, ExactTag) for one in self.wanted)

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """The constraints among `wanted`. If there is one, the item's tags must be known."""
        return tuple(one for one in self.wanted if isinstance(one, Constraint))

    @property
    def exact_tags(self) -> tuple[ExactTag, ...]:
        """The exact tags among `wanted`."""
        return tuple(one for one in self.wanted if isinstance(one, ExactTag))

    def covers(self, tag: str) -> bool:
        """Whether `wanted` names `tag`."""
        version = parse_version(tag)
        if version is None:
            return any(one.tag == tag for one in self.exact_tags)
        return any(parse_version(one.tag) == version for one in self.exact_tags) or any(
            one.accepts(version) for one in self.constraints
        )

    def __str__(self) -> str:
        return " ".join(f"{self.name}@{one}" for one in self.wanted) or self.name


@dataclass(frozen=True, slots=True)
class Filter:
    """Which items of a kind are taken: only the named ones, or all but the named ones.

    An exclusion with a version part excludes only the versions that match.
    """

    items: Mapping[str, ItemFilter] = field(default_factory=dict)
    excludes: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", MappingProxyType(dict(self.items)))

    @classmethod
    def including(cls, texts: Iterable[str], flag: str = "--include-module") -> Filter:
        """Take only what `texts` name; everything if they name nothing.

        Raises:
            InputError: one of them is not a filter; the message names `flag`.
        """
        items = _merged(texts, flag)
        return cls(items, excludes=not items)

    @classmethod
    def excluding(cls, texts: Iterable[str], flag: str = "--exclude-module") -> Filter:
        """Take all but what `texts` name; raises as `including`."""
        return cls(_merged(texts, flag), excludes=True)

    @property
    def names(self) -> tuple[str, ...]:
        """The items that an including filter names, sorted; an excluding one has none."""
        return () if self.excludes else tuple(sorted(self.items))

    def matches(self, name: str) -> bool:
        """Whether the item is taken, at least in part."""
        if self.excludes:
            return name not in self.items or bool(self.items[name].wanted)
        return name in self.items

    def constraint_for(self, name: str) -> ItemFilter:
        """Which versions of a matching item the user asked for."""
        return ItemFilter(name) if self.excludes else self.items[name]

    def leaves_out(self, name: str, tag: str) -> bool:
        """Whether this version of an item, or the whole item, is left out."""
        if not self.matches(name):
            return True
        return self.excludes and name in self.items and self.items[name].covers(tag)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know about how the flags were understood."""
        return tuple(
            f"{item.name}@{one}: {one.ignored!r} is not a release channel and has no effect; "
            f"channels are {', '.join(CHANNELS)}"
            for item in self.items.values()
            for one in item.exact_tags
            if one.ignored
        )


def parse_filter(text: str, flag: str = "--include-module") -> ItemFilter:
    """Read `name[@version]`, as a user gave it to `flag`, or raise InputError."""
    name, at, version = (part.strip() for part in text.strip().partition("@"))
    if not name:
        raise InputError(f"{flag} {text[:120]!r} names nothing; write name or name@version")
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise InputError(
            f"{flag} {text[:120]!r}: what stands before '@' is not a name; names are lower-case "
            "letters and digits, joined by . _ or -"
        )
    if not at:
        return ItemFilter(name)
    if not version:
        raise InputError(
            f"{flag} {text[:120]!r}: the version constraint is missing after '@'; {_QUOTE} {flag} "
            f"'{name}@>=1.0.0', or check the variable that should have filled it"
        )
    return ItemFilter(name, (_parse_wanted(version, f"{flag} {text[:120]!r}"),))


def parse_platform(text: str, flag: str = "--include-platform") -> ExactTag | Constraint:
    """Read what may stand behind `@`, for the platform, or raise InputError."""
    version = text.strip()
    if not version:
        raise InputError(
            f"{flag} has no version constraint; {_QUOTE} {flag} '>=1.64', or check the variable "
            "that should have filled it"
        )
    if version.startswith("-"):
        raise InputError(
            f"{flag} {version[:120]!r} is another flag, not a version; {_QUOTE} {flag} '>=1.64' "
            "(and remove the file that it made, such as '=1.64')"
        )
    if "/" in version or "\\" in version or version in (".", "..", "~"):
        raise InputError(
            f"{flag} {version[:120]!r} is a path, not a version; the constraint seems to be "
            f"missing, write {flag} '>=1.64' and then the bundle's folder"
        )
    return _parse_wanted(version, f"{flag} {version[:120]!r}")


def select_versions(wanted: Iterable[ExactTag | Constraint], tags: Collection[str]) -> list[str]:
    """Return the tags that `wanted` selects among `tags`, those of the item; each once, in order.

    A constraint selects the latest patch of each minor version that it accepts, and its inclusive
    bounds where they exist, oldest first. Exact tags are selected whether listed or not.
    """
    found: list[str] = []
    spelled = tags_of_versions(tags)
    for one in wanted:
        if isinstance(one, ExactTag):
            found.append(one.tag)
        else:
            accepted = [version for version in spelled if one.accepts(version)]
            chosen = {*latest_patches(accepted), *one.anchors}
            found += [spelled[version] for version in accepted if version in chosen]
    return list(dict.fromkeys(found))


def _merged(texts: Iterable[str], flag: str) -> dict[str, ItemFilter]:
    items: dict[str, ItemFilter] = {}
    for text in texts:
        item = parse_filter(text, flag)
        before = items.get(item.name, item).wanted
        items[item.name] = ItemFilter(item.name, tuple(dict.fromkeys((*before, *item.wanted))))
    return items


def _parse_wanted(text: str, where: str) -> ExactTag | Constraint:
    if text.startswith("="):
        return _parse_exact(text[1:], where)
    if text.startswith((">", "<", "~", "^")):
        try:
            return Constraint.parse(text)
        except InputError as err:
            raise InputError(f"{where}: {err}") from err
    version = read_version(text)
    if version is None:
        raise InputError(f"{where}: {text[:120]!r} selects no versions; {_FORMS}")
    if version.build in CHANNELS:
        raise InputError(f"{where}: a channel follows an exact tag only, as in '={text[:120]}'")
    return Constraint.same_major(version.replace(build=None))


def _parse_exact(text: str, where: str) -> ExactTag:
    tag, plus, suffix = (part.strip() for part in text.rpartition("+"))
    tag, suffix = (tag, suffix) if plus else (suffix, "")
    if tag.startswith((">", "<", "=")):
        raise InputError(
            f"{where}: '=' asks for exactly the tag {tag[:120]!r}, which no registry can hold; "
            f"for a range write it first, such as '>={tag.lstrip('<>= ')[:40]}'"
        )
    if not valid_tag(tag):
        raise InputError(f"{where}: {tag[:120]!r} is not a tag; {_FORMS}")
    return ExactTag(tag, suffix) if suffix in CHANNELS else ExactTag(tag, ignored=suffix)


@dataclass(frozen=True, slots=True)
class PlatformSelection:
    """Which platform releases the user asks for; without `tag`, `constraint` and `since_version`,
    which exclude each other, the current ones.

    `tag` is a channel, a version or any other tag. `ignore_suspend` takes releases although the
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
    ) -> PlatformSelection:
        """Read the flags of those names; an exact `--include-platform` is a `--deckhouse-tag`.

        Raises:
            InputError: one of them cannot be understood, or they contradict each other.
        """
        flags = ("--deckhouse-tag", "--include-platform", "--since-version")
        texts = (deckhouse_tag, include_platform, since_version)
        given = [flag for flag, text in zip(flags, texts, strict=True) if text is not None]
        if len(given) > 1:
            raise InputError(
                f"{' and '.join(given)} contradict each other: each says alone which platform "
                "releases to take; keep one of them"
            )
        if deckhouse_tag is not None and not valid_tag(deckhouse_tag):
            raise InputError(
                f"--deckhouse-tag {deckhouse_tag[:120]!r} is not a tag; write a release channel, a "
                "version such as v1.69.0, or any other tag of the source"
            )
        if include_platform is not None:
            wanted = parse_platform(include_platform)
            if isinstance(wanted, Constraint):
                return cls(constraint=wanted, ignore_suspend=ignore_suspend)
            return cls(wanted.tag, ignore_suspend=ignore_suspend)
        since = read_version((since_version or "").strip())
        if since is None and since_version is not None:
            raise InputError(
                f"--since-version {since_version[:120]!r} is not a version; write one such as 1.64"
            )
        return cls(deckhouse_tag, None, since, ignore_suspend)


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user wants of a release tree. The defaults take everything; None leaves a part out.

    Attributes:
        plugins: plugins to take besides those that the selected modules need.
        only_extra_images: take only the extra images of modules and packages.
        vex: take attestations.
        signatures: take cosign's other tags, and OCI referrers.
        platforms: keep only the images for these in multi-arch indexes that tags name.
        probing: the source cannot list tags; find versions by trying them.
        rules: how much of each image must be at the source.
        modules_must_exist: a source without a repository of modules is an error.
    """

    platform: PlatformSelection | None = field(default_factory=PlatformSelection)
    installer_tag: str | None = "latest"
    security: bool = True
    modules: Filter | None = field(default_factory=Filter)
    packages: Filter | None = field(default_factory=Filter)
    plugins: Filter | None = field(default_factory=lambda: Filter.including((), "--include-plugin"))
    only_extra_images: bool = False
    vex: bool = True
    signatures: bool = True
    platforms: tuple[Platform, ...] = ()
    probing: bool = False
    rules: ContentRules = AS_USUAL
    modules_must_exist: bool = False


@dataclass(frozen=True, slots=True, order=True)
class WantedImage:
    """One image for the bundle.

    Attributes:
        archive: where it goes.
        repository: its path in the release tree.
        tag: its tag in the bundle.
        reference: the tag or digest by which the source knows it.
        needed_by: what leads to it, for the error if the source does not have it.
        optional: leave it out if the source does not have it.
        notable: warn the user when it is left out.
        component: what the installer calls it (`module/image`), if it lists it.
    """

    archive: str
    repository: str
    tag: str
    reference: str | Digest = field(compare=False)
    needed_by: str = field(compare=False)
    optional: bool = field(default=False, compare=False)
    notable: bool = field(default=False, compare=False)
    component: str = field(default="", compare=False)

    @classmethod
    def of(
        cls,
        repository: str,
        name: str | Digest,
        needed_by: str,
        reference: str | Digest | None = None,
        *,
        optional: bool = False,
        notable: bool = False,
    ) -> WantedImage:
        """An image in the archive where its repository belongs.

        `name` is its tag; the tag of one that others reference by digest only is its bare hex.
        Without a `reference` the source is asked for `name`.
        """
        tag = name.encoded if isinstance(name, Digest) else name
        archive = archive_of(repository)
        return cls(archive, repository, tag, reference or name, needed_by, optional, notable)
