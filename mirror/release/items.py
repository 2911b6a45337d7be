"""Modules and packages: which versions and channels belong in a bundle, and their images.

The first part decides, from facts alone; the second asks the source for the facts. `index` is the
kind of an item: `modules` or `packages`, the repository whose tags name all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from semver import Version

from mirror.errors import (
    DeniedError,
    InvalidManifestError,
    InvalidReferenceError,
    SourceContentError,
)
from mirror.layout import (
    CHANNELS,
    MODULES,
    PACKAGE_VERSIONS_ARCHIVE,
    PACKAGES,
    is_attachment_tag,
    names_component,
    repositories_of,
    tags_in_order,
    tags_of_versions,
    version_tag,
)
from mirror.oci import Digest, Manifest
from mirror.oci.reference import check_repository, valid_tag
from mirror.release.discovery import ChannelFact, can_lead, json_object, read_channels
from mirror.release.selection import Filter, ItemFilter, Selection, WantedImage, select_versions
from mirror.release.source import ReleaseSource, probed_tags

MODULE_IMAGES_DIGESTS = "images_digests.json"
EXTRA_IMAGES = "extra_images.json"

_MOST_DIGITS = 18
"""The most digits of a number that stands for a tag."""

_DIGEST = re.compile(rb"sha512:[a-f0-9]{128}|sha256:[a-f0-9]{64}")


@dataclass(frozen=True, slots=True)
class SelectedVersions:
    """The tags to take of a module or package, oldest version first, and its channels.

    `channels` lead to some of `tags`. `aliases` are channels that the bundle publishes although
    they lead elsewhere at the source: channel → the tag of the release repository whose image it
    gets, if there is one.
    """

    tags: tuple[str, ...]
    channels: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def select_item(
    wanted: ItemFilter,
    channels: Mapping[str, Version],
    tags: Collection[str],
    *,
    left_out: Callable[[str], bool] = lambda _: False,
) -> SelectedVersions:
    """Choose what an item's channels lead to, and what the filter names.

    `channels` says where each existing channel leads; `tags` are the item's. A filter of exact tags
    ignores both. A channel that leads to a tag which the user excluded (`left_out`) is left out.
    """
    if wanted.is_exact:
        kept = [tag for tag in select_versions(wanted.wanted, tags) if not left_out(tag)]
        aliases = {name: tag for name, tag in _aliases(wanted).items() if tag in kept}
        return SelectedVersions(tags_in_order(kept), (), aliases)
    spelled = tags_of_versions(tags)
    leads = {
        name: spelled.get(channels[name], version_tag(channels[name]))
        for name in CHANNELS
        if name in channels
    }
    every = (*leads.values(), *select_versions(wanted.wanted, tags))
    chosen = [tag for tag in every if not left_out(tag)]
    warnings = tuple(
        f"{wanted.name}@{one}: +{one.channel} has no effect, because {wanted.name} is asked for by "
        "constraint too and then keeps its own channels"
        for one in wanted.exact_tags
        if one.channel
    )
    leading = tuple(name for name, tag in leads.items() if tag in chosen)
    return SelectedVersions(tags_in_order(chosen), leading, {}, warnings)


def _aliases(wanted: ItemFilter) -> dict[str, str]:
    """Channel → exact tag that is published to it; of several the last that names a channel."""
    exact = wanted.exact_tags
    if len(exact) == 1 and exact[0].channel is None:
        return dict.fromkeys(CHANNELS, exact[0].tag)
    return {one.channel: one.tag for one in exact if one.channel is not None}


# -- what the source says -------------------------------------------------------------------------


_NOUNS = {MODULES: "module", PACKAGES: "package"}


@dataclass(frozen=True, slots=True)
class SelectedItem:
    """The versions of one item that travel, oldest first, and their images."""

    name: str
    versions: tuple[str, ...]
    images: tuple[WantedImage, ...]
    warnings: tuple[str, ...] = ()


def select_items(
    source: ReleaseSource, index: str, wanted: Filter | None, selection: Selection
) -> list[SelectedItem]:
    """Select every item of a kind that `wanted` takes, with its versions; sorted by name."""
    if wanted is None:
        return []
    for warning in wanted.warnings:
        source.warn(warning)
    items = source.each(
        index,
        _names(source, index, wanted, selection),
        lambda name: _ItemSelecting(source, index, name, wanted, selection).select(),
    )
    for item in items:
        # Only now, so that warnings come in the order of the items and not of the answers.
        for warning in item.warnings:
            source.warn(warning)
        if not item.versions and item.name in wanted.names:
            source.warn(f"{_NOUNS[index]} {item.name} has no version at the source; it is left out")
    return [item for item in items if item.images]


def _names(
    source: ReleaseSource, index: str, wanted: Filter, selection: Selection
) -> Sequence[str]:
    if selection.probing:
        return wanted.names
    published = _published(source, index)
    where, noun = source.tree.origin(index), _NOUNS[index]
    if published is None:
        if wanted.names:
            raise SourceContentError(
                f"{where} does not exist, so there is no {noun} {', '.join(wanted.names)}; "
                "check --source, and that your licence covers it"
            )
        if selection.modules_must_exist and index == MODULES:
            raise SourceContentError(
                f"{where} does not exist, where --modules-path-suffix says that modules are; "
                "correct it, or leave modules out with --no-modules"
            )
        source.warn(f"{where} does not exist; no {index} are taken")
        return ()
    unknown = sorted(set(wanted.names) - published)
    if unknown:
        raise SourceContentError(
            f"{where} has no {noun} {', '.join(unknown)}; "
            f"it has: {', '.join(sorted(published)) or 'none'}"
        )
    for name in sorted(wanted.items.keys() - published if wanted.excludes else ()):
        source.warn(f"there is no {noun} {name} to leave out; is the name right?")
    return sorted(name for name in published if wanted.matches(name))


def _published(source: ReleaseSource, index: str) -> frozenset[str] | None:
    """The names of all items: those tags of their index that name one."""
    tags = source.tags(index)
    return tags and frozenset(tag for tag in tags if names_component(tag))


class _ItemSelecting:
    """One module or package, while its versions and images are selected."""

    def __init__(
        self, source: ReleaseSource, index: str, name: str, wanted: Filter, selection: Selection
    ) -> None:
        self._source, self._name, self._selection = source, name, selection
        self._filter, self._entry = wanted, wanted.constraint_for(name)
        self._repository, self._releases = repositories_of(index, name)
        self._called = f"{_NOUNS[index]} {name}"
        self._title = self._called + (f" ({self._entry})" if self._entry.wanted else "")
        self._warnings: list[str] = []

    def select(self) -> SelectedItem:
        facts: Mapping[str, ChannelFact] = {}
        if not self._entry.is_exact:
            listed = None if self._selection.probing else self._source.tags(self._releases) or ()
            facts = read_channels(self._source, self._releases, listed)
        tags = self._tags()
        for constraint in self._entry.constraints:
            if not select_versions((constraint,), tags):
                self._warnings.append(
                    f"no version of {self._called} fits {constraint}; "
                    "what its release channels lead to is taken"
                )
        chosen = select_item(
            self._entry,
            {name: fact.version for name, fact in facts.items()},
            tags,
            left_out=lambda tag: self._filter.leaves_out(self._name, tag),
        )
        self._warnings += chosen.warnings
        images: list[WantedImage] = []
        if not self._selection.only_extra_images:
            images += self._release_images(chosen, facts)
        for tag in chosen.tags:
            images += self._version_images(tag)
        return SelectedItem(self._name, chosen.tags, tuple(images), tuple(self._warnings))

    def _tags(self) -> Collection[str]:
        """The item's tags, asked for only if a constraint needs them."""
        if not self._entry.constraints:
            return ()
        if self._selection.probing:
            return [
                tag
                for constraint in self._entry.constraints
                for tag in probed_tags(self._source, self._repository, constraint)
            ]
        tags = self._source.tags(self._repository)
        if tags is None:
            where = self._source.tree.origin(self._repository)
            self._warnings.append(f"{where} does not exist; nothing of it fits a constraint")
        return tags or ()

    def _release_images(
        self, chosen: SelectedVersions, facts: Mapping[str, ChannelFact]
    ) -> list[WantedImage]:
        """The release images: one for each version and channel."""
        leading = {
            tag
            for tag in sorted(set(chosen.aliases.values()))
            if can_lead(self._source, self._releases, tag, chosen.tags, self._warnings.append)
        }
        wanted: list[tuple[str, str | Digest | None, bool]] = [
            *((tag, None, True) for tag in chosen.tags),
            *((name, facts[name].digest, False) for name in chosen.channels),
            *((name, tag, True) for name, tag in chosen.aliases.items() if tag in leading),
        ]
        return [
            WantedImage.of(self._releases, name, self._title, reference, optional=optional)
            for name, reference, optional in wanted
        ]

    def _version_images(self, tag: str) -> list[WantedImage]:
        """A version's main image, and the images that it lists: by digest, and extra ones.

        Extra images lie in repositories of their own below the item's, such as databases.
        """
        manifest = self._main(tag)
        where = self._source.where(self._repository, tag)
        lists = (MODULE_IMAGES_DIGESTS, EXTRA_IMAGES)
        files = self._source.files(self._repository, manifest, lists)
        why = f"{EXTRA_IMAGES} of {where}"
        extras = [
            WantedImage.of(
                f"{self._repository}/extra/{name}", one, why, optional=True, notable=True
            )
            for name, one in parse_extra_images(files.get(EXTRA_IMAGES, b"{}"), where).items()
        ]
        if self._selection.only_extra_images:
            return extras
        why = f"{MODULE_IMAGES_DIGESTS} of {where}"
        internal = find_digests(files.get(MODULE_IMAGES_DIGESTS, b""))
        return [
            WantedImage.of(self._repository, tag, self._title, manifest.digest),
            *(WantedImage.of(self._repository, digest, why) for digest in internal),
            *extras,
        ]

    def _main(self, tag: str) -> Manifest:
        """A version's main image."""
        named = any(exact.tag == tag for exact in self._entry.exact_tags)
        if named and self._source.manifest(self._repository, tag) is None:
            known = () if self._selection.probing else self._source.tags(self._repository) or ()
            newest = list(reversed(tags_of_versions(known).values()))[:5]
            has = f"; its newest are {', '.join(newest)}" if newest else ""
            raise SourceContentError(f"{self._called} has no tag {tag} at the source{has}")
        return self._source.required(self._repository, tag, self._title)


def package_version_images(source: ReleaseSource, wanted: Filter | None) -> list[WantedImage]:
    """Take what `packages/<name>/version` has, for every published package.

    A cluster learns from it which packages exist, whichever of them the bundle holds. What the
    source does not give is left out with a warning, unless `wanted` asks for it: all of them if
    access to their index is denied, else those that `wanted` does not name.
    """
    try:
        published = sorted(_published(source, PACKAGES) or ())
    except DeniedError as err:
        if wanted is not None:
            raise
        source.warn(f"no packages are described in the bundle: {err}")
        return []

    def of_package(name: str) -> tuple[list[WantedImage], str | None]:
        asked_for = wanted is not None and name in wanted.names
        _, repository = repositories_of(PACKAGES, name)
        why = f"the tags of package {name}"
        try:
            tags = sorted(source.tags(repository) or ())
            return [
                WantedImage(PACKAGE_VERSIONS_ARCHIVE, repository, tag, tag, why, optional=True)
                for tag in tags
                if not is_attachment_tag(tag)
                and (asked_for or _is_complete(source, repository, tag))
            ], None
        except (DeniedError, SourceContentError, InvalidManifestError) as err:
            if asked_for:
                raise
            return [], f"package {name} is not described in the bundle: {err}"

    found = source.each("package versions", published, of_package)
    for _, warning in found:
        if warning is not None:
            source.warn(warning)
    return [image for images, _ in found for image in images]


def _is_complete(source: ReleaseSource, repository: str, tag: str) -> bool:
    """Whether the source has an image with all that its index names."""
    pending: list[str | Digest] = [tag]
    seen: set[Digest] = set()
    while pending:
        manifest = source.manifest(repository, pending.pop())
        if manifest is None:
            return False
        # Indexes may name one image in many ways, and so twice as many with each generation.
        fresh = {one.descriptor.digest for one in manifest.children} - seen
        seen |= fresh
        pending += sorted(fresh)
    return True


# -- the lists in an item's main image -------------------------------------------------------------


def find_digests(data: bytes) -> list[Digest]:
    """Find every digest in a module's `images_digests.json`, once, in order.

    Modules nest them as they like, so digests are recognised by their form, not by their place.
    """
    return [Digest.parse(text.decode()) for text in dict.fromkeys(_DIGEST.findall(data))]


def parse_extra_images(data: bytes, where: str) -> dict[str, str]:
    """Extra image → tag, from a module's `extra_images.json`; a number counts as its digits."""
    extras: dict[str, str] = {}
    for name, value in json_object(data, where, EXTRA_IMAGES).items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            continue  # other kinds of values are not images
        if isinstance(value, str):
            tag = value
        else:
            tag = f"{value:.0f}" if abs(value) < 10**_MOST_DIGITS else ""
        if not valid_tag(tag):
            raise SourceContentError(f"{where}: {EXTRA_IMAGES}: {name}: {tag!r} is not a tag")
        try:
            check_repository(name)
        except InvalidReferenceError as err:
            raise SourceContentError(f"{where}: {EXTRA_IMAGES}: {err}") from err
        extras[name] = tag
    return extras
