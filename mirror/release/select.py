"""Selecting: the source is asked for its facts, and what belongs in the bundle follows."""

from __future__ import annotations

from collections.abc import Iterable

from semver import Version

from mirror.bundle.names import archive_of
from mirror.errors import SourceContentError
from mirror.oci import Digest, Manifest
from mirror.release.metadata import (
    EXTRA_IMAGES,
    IMAGES_DIGESTS,
    IMAGES_TAGS,
    MODULE_IMAGES_DIGESTS,
    VERSION_JSON,
    find_digests,
    parse_component_digests,
    parse_component_tags,
    parse_extra_images,
    parse_release,
)
from mirror.release.platform import ChannelFact, PlatformSelection, select_platform
from mirror.release.selection import Selection, Wanted, Wishes
from mirror.release.source import ReleaseSource
from mirror.release.tree import (
    CHANNELS,
    INSTALL,
    INSTALL_STANDALONE,
    INSTALLER,
    MODULES,
    RELEASE_CHANNEL,
    SECURITY_DATABASES,
)
from mirror.release.versions import version_tag


def select(source: ReleaseSource, wishes: Wishes) -> Selection:
    """Ask `source` what there is and say what of it `wishes` puts into a bundle.

    Raises:
        SourceContentError: the release tree contradicts itself; the message says where.
        NotFoundError, DeniedError, UnreachableError: the registry does not answer as it should.
    """
    images: list[Wanted] = []
    platform = PlatformSelection((), ())
    if wishes.platform:
        platform = _select_platform(source, wishes)
        images += _platform_images(source, platform)
    if wishes.installer:
        images.append(
            Wanted(
                archive_of(INSTALLER),
                INSTALLER,
                wishes.installer_tag,
                wishes.installer_tag,
                "--installer-tag",
                optional=True,
            )
        )
    if wishes.security:
        images += _security_images(source)
    modules: dict[str, tuple[str, ...]] = {}
    if not wishes.no_modules:
        for name, versions, module_images in _select_modules(source, wishes):
            modules[name] = versions
            images += module_images
    return Selection(
        tuple(sorted(dict.fromkeys(images))),
        tuple(version_tag(version) for version in platform.versions),
        tuple(channel.name for channel in platform.channels),
        modules,
    )


def _select_platform(source: ReleaseSource, wishes: Wishes) -> PlatformSelection:
    tags = source.tags(RELEASE_CHANNEL)
    if tags is None:
        raise SourceContentError(
            f"{source.tree.origin(RELEASE_CHANNEL)} does not exist; check that --source names an "
            "edition's repository, and that your licence covers it"
        )
    return select_platform(
        _channels(source, RELEASE_CHANNEL, tags), tags, ignore_suspend=wishes.ignore_suspend
    )


def _channels(
    source: ReleaseSource, repository: str, tags: Iterable[str]
) -> dict[str, ChannelFact]:
    """What each channel of `repository` leads to."""
    names = [name for name in CHANNELS if name in set(tags)]
    facts = source.each(
        f"channels of {repository}", names, lambda name: _channel(source, repository, name)
    )
    return {fact.name: fact for fact in facts}


def _channel(source: ReleaseSource, repository: str, name: str) -> ChannelFact:
    manifest = _required(source, repository, name, "the list of its tags")
    where = f"{source.tree.origin(repository)}:{name}"
    found = source.files(repository, manifest, [VERSION_JSON])
    version, suspended = parse_release(found.get(VERSION_JSON), where)
    return ChannelFact(name, version, suspended, manifest.digest)


def _required(
    source: ReleaseSource, repository: str, reference: str | Digest, needed_by: str
) -> Manifest:
    manifest = source.manifest(repository, reference)
    if manifest is None:
        raise missing_image(source, repository, reference, needed_by)
    return manifest


def missing_image(
    source: ReleaseSource, repository: str, reference: str | Digest, needed_by: str
) -> SourceContentError:
    """The source lacks an image that something in it leads to."""
    separator = "@" if isinstance(reference, Digest) else ":"
    return SourceContentError(
        f"{source.tree.origin(repository)}{separator}{reference} is not there, though {needed_by} "
        "names it; the source is incomplete, ask its owner, or select other releases"
    )


def _platform_images(source: ReleaseSource, platform: PlatformSelection) -> list[Wanted]:
    archive = archive_of("")
    images = [
        Wanted(archive, RELEASE_CHANNEL, channel.name, channel.digest, f"channel {channel.name}")
        for channel in platform.channels
    ]
    for version in platform.versions:
        tag, why = version_tag(version), f"platform release {version_tag(version)}"
        images += [
            Wanted(archive, "", tag, tag, why),
            Wanted(archive, INSTALL, tag, tag, why),
            Wanted(archive, INSTALL_STANDALONE, tag, tag, why, optional=True),
            Wanted(archive, RELEASE_CHANNEL, tag, tag, why),
        ]
    listed = source.each(
        "component lists", platform.versions, lambda version: _components(source, version)
    )
    # A component of several releases is wanted once, and named for the first that has it.
    components: dict[str, Wanted] = {}
    for wanted in (component for components_of in listed for component in components_of):
        components.setdefault(wanted.tag, wanted)
    return [*images, *components.values()]


def _components(source: ReleaseSource, version: Version) -> list[Wanted]:
    """The images that a release's installer lists."""
    tag = version_tag(version)
    where = f"{source.tree.origin(INSTALL)}:{tag}"
    installer = _required(source, INSTALL, tag, f"platform release {tag}")
    found = source.files(INSTALL, installer, [IMAGES_DIGESTS, IMAGES_TAGS])
    archive = archive_of("")
    if IMAGES_TAGS in found:
        # Old releases list tags; their list counts even where a list of digests lies beside it.
        by_tag = parse_component_tags(found[IMAGES_TAGS], where)
        if by_tag:
            return [
                Wanted(archive, "", name, name, f"component {component} of installer {where}")
                for name, component in by_tag.items()
            ]
    if IMAGES_DIGESTS not in found:
        raise SourceContentError(
            f"{where}: the installer has neither {IMAGES_DIGESTS} nor {IMAGES_TAGS}, so the "
            "release's components are not known"
        )
    return [
        Wanted.by_digest(archive, "", digest, f"component {component} of installer {where}")
        for digest, component in parse_component_digests(found[IMAGES_DIGESTS], where).items()
    ]


def _security_images(source: ReleaseSource) -> list[Wanted]:
    first = next(iter(SECURITY_DATABASES))
    if source.manifest(first, SECURITY_DATABASES[first]) is None:
        source.warn(f"{source.tree.root} offers no security databases; they are left out")
        return []
    return [
        Wanted(archive_of(path), path, tag, tag, "the security databases", optional=True)
        for path, tag in SECURITY_DATABASES.items()
    ]


def _select_modules(
    source: ReleaseSource, wishes: Wishes
) -> list[tuple[str, tuple[str, ...], list[Wanted]]]:
    """(name, versions, images) of each module that is wanted."""
    published = source.tags(MODULES)
    if published is None:
        source.warn(f"{source.tree.origin(MODULES)} does not exist; no modules are taken")
        published = []
    names = sorted(published)
    if wishes.modules is not None:
        unknown = sorted(set(wishes.modules) - set(names))
        if unknown:
            raise SourceContentError(
                f"{source.tree.origin(MODULES)} has no module {', '.join(unknown)}; "
                f"it has: {', '.join(names) or 'none'}"
            )
        names = sorted(set(wishes.modules))
    return source.each("modules", names, lambda name: _module(source, name))


def _module(source: ReleaseSource, name: str) -> tuple[str, tuple[str, ...], list[Wanted]]:
    repository, releases = f"{MODULES}/{name}", f"{MODULES}/{name}/release"
    archive = archive_of(repository)
    tags = set(source.tags(releases) or ())
    channels = [_channel(source, releases, channel) for channel in CHANNELS if channel in tags]
    images = [
        Wanted(archive, releases, fact.name, fact.digest, f"module {name}") for fact in channels
    ]
    versions = sorted({fact.version for fact in channels})
    for version in versions:
        tag, why = version_tag(version), f"a release channel of module {name}"
        manifest = _required(source, repository, tag, why)
        images += [
            Wanted(archive, repository, tag, manifest.digest, why),
            Wanted(archive, releases, tag, tag, why, optional=True),
        ]
        where = f"{source.tree.origin(repository)}:{tag}"
        found = source.files(repository, manifest, [MODULE_IMAGES_DIGESTS, EXTRA_IMAGES])
        images += [
            Wanted.by_digest(archive, repository, digest, f"{MODULE_IMAGES_DIGESTS} of {where}")
            for digest in find_digests(found.get(MODULE_IMAGES_DIGESTS, b""))
        ]
        extras = parse_extra_images(found.get(EXTRA_IMAGES, b"{}"), where)
        images += [
            Wanted(
                archive,
                f"{repository}/extra/{extra}",
                extra_tag,
                extra_tag,
                f"{EXTRA_IMAGES} of {where}",
                optional=True,
            )
            for extra, extra_tag in extras.items()
        ]
    return name, tuple(version_tag(version) for version in versions), images
