"""What belongs in a bundle: every image that a selection leads to, part by part.

Platform, installer, databases, modules, packages, plugins; `mirror.release.resolve` has the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from types import MappingProxyType
from typing import Any

from mirror.errors import DeniedError, MirrorError
from mirror.layout import CHANNELS, INSTALL, INSTALLER, PLUGINS, SECURITY_DATABASES, is_digest_tag
from mirror.oci import Descriptor, Digest, verified
from mirror.oci.layers import read_files
from mirror.release.items import MODULE, PACKAGE, package_version_images, select_items
from mirror.release.platform import (
    IMAGES_DIGESTS,
    IMAGES_TAGS,
    SelectedPlatform,
    parse_components,
    select_platform_images,
)
from mirror.release.plugins import PluginChoice, plugins_for
from mirror.release.selection import Selection, WantedImage
from mirror.release.source import ReleaseSource
from mirror.sync import Finding, Inventory, Source


@dataclass(frozen=True, slots=True)
class SelectedContent:
    """All images for a bundle, in canonical order, and what a person would call them.

    `channels` are the platform's channels that travel. Versions are tags, oldest first. `files`
    lie beside the archives.
    """

    images: tuple[WantedImage, ...]
    platform_versions: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    packages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    plugins: Mapping[str, tuple[PluginChoice, ...]] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("modules", "packages", "plugins", "files"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def to_document(self) -> dict[str, Any]:
        """The names of what was selected, as JSON values."""
        return {
            "platform": {"versions": list(self.platform_versions), "channels": list(self.channels)},
            "modules": {name: list(versions) for name, versions in self.modules.items()},
            "packages": {name: list(versions) for name, versions in self.packages.items()},
            "plugins": {
                name: {choice.tag: [str(edge) for edge in choice.edges] for choice in choices}
                for name, choices in self.plugins.items()
            },
        }


def select(source: ReleaseSource, selection: Selection) -> SelectedContent:
    """Ask `source` what it has, and choose what of it `selection` puts into a bundle.

    Raises:
        SourceContentError: the release tree contradicts itself; the message says where.
        NotFoundError: the source does not have what the user named.
    """
    platform = SelectedPlatform()
    if selection.platform is not None:
        platform = select_platform_images(source, selection.platform, probing=selection.probing)
    images = [*platform.images]
    if selection.installer_tag is not None:
        images.append(
            WantedImage.of(
                INSTALLER, selection.installer_tag, "--installer-tag", optional=True, notable=True
            )
        )
    if selection.security:
        images += _security_databases(source)
    modules, packages = (
        select_items(source, kind, wanted, selection) if wanted is not None else []
        for kind, wanted in ((MODULE, selection.modules), (PACKAGE, selection.packages))
    )
    for item in (*modules, *packages):
        images += item.images
    if not selection.probing and not selection.only_extra_images:
        images += _without_stray_channels(_described_packages(source, selection), images)
    module_versions = {item.name: item.versions for item in modules}
    plugins: tuple[PluginChoice, ...] = ()
    if selection.plugins is not None and (selection.plugins.names or module_versions):
        plugins = plugins_for(
            source,
            selection.plugins,
            module_versions,
            platform.selection.versions,
            proxy=selection.probing,
        )
    for choice in plugins:
        why = " and ".join(edge.subject for edge in choice.edges) or "the selection of plugins"
        images.append(WantedImage.of(f"{PLUGINS}/{choice.name}", choice.tag, why))
    return SelectedContent(
        tuple(sorted(dict.fromkeys(images))),
        (*platform.selection.tags, *platform.selection.custom_tags),
        platform.channels,
        module_versions,
        {item.name: item.versions for item in packages},
        {
            name: tuple(choices)
            for name, choices in groupby(plugins, key=lambda choice: choice.name)
        },
        platform.files,
    )


def _security_databases(source: ReleaseSource) -> list[WantedImage]:
    """All security databases; none if the edition does not have the first of them."""
    first = next(iter(SECURITY_DATABASES))
    if source.manifest(first, SECURITY_DATABASES[first]) is None:
        source.warn(f"{source.tree.root} offers no security databases; they are left out")
        return []
    return [
        WantedImage.of(path, tag, "the security databases", optional=True, notable=True)
        for path, tag in SECURITY_DATABASES.items()
    ]


def _described_packages(source: ReleaseSource, selection: Selection) -> list[WantedImage]:
    """The descriptions of all packages. A user who takes no packages needs no access to them."""
    try:
        return package_version_images(source, selection.packages)
    except DeniedError as err:
        if selection.packages is not None:
            raise
        source.warn(f"no packages are described in the bundle: {err}")
        return []


def _without_stray_channels(
    versions: Iterable[WantedImage], selected: Iterable[WantedImage]
) -> list[WantedImage]:
    """`versions` without the channels of selected packages, which lie in archives of their own."""
    repositories = {image.repository for image in selected}
    return [
        image
        for image in versions
        if image.tag not in CHANNELS or image.repository not in repositories
    ]


# -- what images are called ------------------------------------------------------------------------


def component_names(content: Source, inventory: Inventory) -> dict[Digest, str]:
    """Return the name of each image that an installer in `inventory` lists.

    Layers of the installers are read, as far down as their lists lie, and of a delta those that it
    carries. An installer that cannot be read names nothing.
    """
    names: dict[Digest, str] = {}
    tags, carried = inventory.repository("").tags, inventory.blob_sizes().keys()
    for digest in dict.fromkeys(inventory.repository(INSTALL).tags.values()):
        with suppress(MirrorError):
            for name, component in _listed(content, digest, carried).items():
                image = name if isinstance(name, Digest) else tags.get(name)
                if image is not None:
                    names.setdefault(image, component)
    return names


def with_components(
    findings: Sequence[Finding], content: Source, inventory: Callable[[], Inventory]
) -> tuple[Finding, ...]:
    """Return `findings` with what the installers in `inventory()` call the images that they affect.

    Nothing is read where no finding is about an image of the platform that goes by its digest.
    """
    if not any(one.repository == "" and any(map(is_digest_tag, one.tags)) for one in findings):
        return tuple(findings)
    names = {image.encoded: name for image, name in component_names(content, inventory()).items()}

    def called(one: Finding) -> tuple[str, ...]:
        # An attachment's tag has the digest of its image between `sha256-` and `.`.
        images = (tag.removeprefix("sha256-").partition(".")[0] for tag in one.tags)
        return tuple(sorted({names[image] for image in images if image in names}))

    return tuple(
        one if one.repository else replace(one, components=called(one)) for one in findings
    )


def _listed(
    content: Source, digest: Digest, carried: Collection[Digest]
) -> Mapping[Digest | str, str]:
    image = content.manifest(INSTALL, digest)
    while image.is_index:
        if not image.children:
            return {}
        image = content.manifest(INSTALL, image.children[0].descriptor.digest)

    def layer(one: Descriptor) -> Iterator[bytes]:
        where = f"{content.name}: layer {one.digest}"
        return verified(
            content.blob(INSTALL, one.digest, one.size), one.digest, one.size, where=where
        )

    where = f"{content.name}: {INSTALL}@{digest}"
    layers = [partial(layer, one) for one in image.layers if one.digest in carried]
    found = read_files(layers, (IMAGES_DIGESTS, IMAGES_TAGS), where=where)
    listed = parse_components(found.get(IMAGES_TAGS, b"{}"), where, IMAGES_TAGS)
    return listed or parse_components(found.get(IMAGES_DIGESTS, b"{}"), where, IMAGES_DIGESTS)
