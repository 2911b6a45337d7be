"""What belongs in a bundle, part by part: platform, installer, databases, items, plugins."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from semver import Version

from mirror.errors import DeniedError
from mirror.layout import (
    CHANNELS,
    INSTALLER,
    PLUGINS,
    SECURITY_DATABASES,
    parse_version,
)
from mirror.release.contracts import ANNOTATION, Contract, parse_contract, valid_plugin_name
from mirror.release.images import WantedImage
from mirror.release.items import MODULE, PACKAGE, package_version_images, select_items
from mirror.release.platform import SelectedPlatform, SelectedReleases, select_platform_images
from mirror.release.plugins import PluginChoice, select_plugins
from mirror.release.selection import Selection
from mirror.release.source import ReleaseSource


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
        DeniedError, UnreachableError: the registry does not answer as it should.
    """
    platform = SelectedPlatform(SelectedReleases((), ()), ())
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
    plugins = _plugins(source, selection, module_versions, platform.selection.versions)
    images += map(_plugin_image, plugins)
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


# -- plugins ---------------------------------------------------------------------------------------


def _plugins(
    source: ReleaseSource,
    selection: Selection,
    modules: Mapping[str, Collection[str]],
    platform: Collection[Version],
) -> tuple[PluginChoice, ...]:
    """Choose the plugins for a bundle with these module tags and platform releases.

    Raises:
        NotFoundError, SourceContentError: a plugin that the user named cannot be had.
    """
    wanted = selection.plugins
    if wanted is None or not (wanted.names or modules):
        return ()
    for warning in wanted.warnings:
        source.warn(warning)
    selected = select_plugins(
        _SourcePlugins(source, wanted.names),
        modules={
            name: [version for tag in tags if (version := parse_version(tag)) is not None]
            for name, tags in modules.items()
        },
        platform=platform,
        wanted=[wanted.items[name] for name in wanted.names],
        proxy=selection.probing,
    )
    for warning in (
        *(f"plugin {one.name} is left out: {one.reason}" for one in selected.skipped),
        *selected.warnings,
    ):
        source.warn(warning)
    return selected.choices


def _plugin_image(choice: PluginChoice) -> WantedImage:
    why = " and ".join(edge.subject for edge in choice.edges) or "the selection of plugins"
    return WantedImage.of(f"{PLUGINS}/{choice.name}", choice.tag, why)


class _SourcePlugins:
    """What the source says about its plugins (`PluginFacts`)."""

    def __init__(self, source: ReleaseSource, named: Collection[str]) -> None:
        self._source, self._named = source, named
        self._denied: set[str] = set()  # each repository is asked for by one thread at a time

    def names(self) -> Collection[str] | None:
        names = self._tags(PLUGINS)
        # They are needed one after the other; asked for in parallel, the answers are there by then.
        asked = sorted(name for name in names or () if valid_plugin_name(name))
        self._source.each("plugins", asked, self.tags)
        return names

    def tags(self, name: str) -> Collection[str] | None:
        repository = f"{PLUGINS}/{name}"
        # A plugin that the user named must not go missing with a mere warning.
        return self._source.tags(repository) if name in self._named else self._tags(repository)

    def _tags(self, repository: str) -> Collection[str] | None:
        try:
            return self._source.tags(repository)
        except DeniedError:
            # Plugins lie beside the edition, where not every licence reaches.
            if repository not in self._denied:
                self._denied.add(repository)
                where = self._source.tree.origin(repository)
                self._source.warn(f"access to {where} is denied; no plugins are taken from there")
            return None

    def contract(self, name: str, tag: str) -> Contract:
        repository = f"{PLUGINS}/{name}"
        manifest = self._source.required(repository, tag, f"plugin {name}")
        annotation = manifest.annotations.get(ANNOTATION)
        if annotation is None and manifest.children:
            first = manifest.children[0].descriptor.digest
            child = self._source.required(repository, first, f"index {manifest.digest}")
            annotation = child.annotations.get(ANNOTATION)
        where = self._source.where(repository, tag)
        return parse_contract(annotation, name=name, version=tag, where=where)
