"""Selecting: the source is asked for its facts, and what belongs in the bundle follows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from semver import Version

from mirror.errors import DeniedError
from mirror.layout import (
    CHANNELS,
    INSTALLER,
    PLUGINS,
    SECURITY_DATABASES,
    archive_of,
    parse_version,
)
from mirror.release.contracts import ANNOTATION, Contract, parse_contract, valid_plugin_name
from mirror.release.images import WantedImage
from mirror.release.items import MODULE, PACKAGE, SelectedItem, package_version_images, select_items
from mirror.release.platform import SelectedPlatform, SelectedReleases, select_platform_images
from mirror.release.plugins import PluginChoice, SelectedPlugins, select_plugins
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
        """What was selected by name, as JSON values."""
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
    """Ask `source` what there is and say what of it `selection` puts into a bundle.

    Raises:
        SourceContentError: the release tree contradicts itself; the message says where.
        NotFoundError: what was asked for by name is not there.
        DeniedError, UnreachableError: the registry does not answer as it should.
    """
    images: list[WantedImage] = []
    platform = SelectedPlatform(SelectedReleases((), ()), ())
    if selection.platform is not None:
        platform = select_platform_images(source, selection.platform, probing=selection.probing)
        images += platform.images
    if selection.installer_tag is not None:
        images.append(installer_image(selection.installer_tag))
    if selection.security:
        images += security_images(source)
    modules: list[SelectedItem] = []
    if selection.modules is not None:
        modules = select_items(source, MODULE, selection.modules, selection)
    packages: list[SelectedItem] = []
    if selection.packages is not None:
        packages = select_items(source, PACKAGE, selection.packages, selection)
    for item in (*modules, *packages):
        images += item.images
    if not selection.probing and not selection.only_extra_images:
        images += _without_stray_channels(_described_packages(source, selection), images)
    module_versions = {item.name: item.versions for item in modules}
    plugins = select_plugin_images(source, selection, module_versions, platform.selection.versions)
    images += plugins.images
    return SelectedContent(
        tuple(sorted(dict.fromkeys(images))),
        (*platform.selection.tags, *platform.selection.custom_tags),
        platform.channels,
        module_versions,
        {item.name: item.versions for item in packages},
        plugins.choices,
        platform.files,
    )


def _described_packages(source: ReleaseSource, selection: Selection) -> list[WantedImage]:
    """What describes all packages. Who wants none of them need not have access to them."""
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
    """`versions` without the channels of selected packages, whose own archives have them."""
    repositories = {image.repository for image in selected}
    return [
        image
        for image in versions
        if image.tag not in CHANNELS or image.repository not in repositories
    ]


def installer_image(tag: str) -> WantedImage:
    """The standalone installer, if the source has it."""
    return WantedImage(
        archive_of(INSTALLER),
        INSTALLER,
        tag,
        tag,
        "--installer-tag",
        optional=True,
        notable=True,
    )


def security_images(source: ReleaseSource) -> list[WantedImage]:
    """The security databases; none where the edition has none, which the first one tells."""
    first = next(iter(SECURITY_DATABASES))
    if source.manifest(first, SECURITY_DATABASES[first]) is None:
        source.warn(f"{source.tree.root} offers no security databases; they are left out")
        return []
    return [
        WantedImage(
            archive_of(path), path, tag, tag, "the security databases", optional=True, notable=True
        )
        for path, tag in SECURITY_DATABASES.items()
    ]


# -- plugins ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PluginPhase:
    """The plugins that travel, by name, and their images."""

    images: tuple[WantedImage, ...] = ()
    choices: Mapping[str, tuple[PluginChoice, ...]] = field(default_factory=dict)


def select_plugin_images(
    source: ReleaseSource,
    selection: Selection,
    modules: Mapping[str, Collection[str]],
    platform: Collection[Version],
) -> PluginPhase:
    """The plugins for a bundle with these module tags and platform releases.

    Raises:
        NotFoundError, SourceContentError: a plugin that was named cannot be had.
    """
    if selection.plugins is None:
        return PluginPhase()
    for warning in selection.plugins.warnings:
        source.warn(warning)
    versions = {
        name: [version for tag in tags if (version := parse_version(tag)) is not None]
        for name, tags in modules.items()
    }
    selected = select_plugins(
        _Facts(source, selection.plugins.names),
        modules=versions,
        platform=platform,
        wanted=[selection.plugins.items[name] for name in selection.plugins.names],
        proxy=selection.probing,
    )
    _tell(source, selected)
    choices: dict[str, list[PluginChoice]] = {}
    for choice in selected.choices:
        choices.setdefault(choice.name, []).append(choice)
    return PluginPhase(
        tuple(_wanted(choice) for choice in selected.choices),
        {name: tuple(found) for name, found in choices.items()},
    )


def _tell(source: ReleaseSource, selected: SelectedPlugins) -> None:
    for skipped in selected.skipped:
        source.warn(f"plugin {skipped.name} is left out: {skipped.reason}")
    for warning in selected.warnings:
        source.warn(warning)


def _wanted(choice: PluginChoice) -> WantedImage:
    path = f"{PLUGINS}/{choice.name}"
    why = " and ".join(edge.subject for edge in choice.edges) or "the selection of plugins"
    return WantedImage(archive_of(path), path, choice.tag, choice.tag, why)


class _Facts:
    """What the source says about its plugins."""

    def __init__(self, source: ReleaseSource, named: Collection[str]) -> None:
        self._source, self._named = source, named
        self._denied: set[str] = set()  # each repository is asked for by one thread at a time

    def names(self) -> Collection[str] | None:
        names = self._tags(PLUGINS)
        # The solver asks for one after the other; in parallel the answers are there already.
        asked = sorted(name for name in names or () if valid_plugin_name(name))
        self._source.each("plugins", asked, self.tags)
        return names

    def tags(self, name: str) -> Collection[str] | None:
        repository = f"{PLUGINS}/{name}"
        # What was asked for by name must not go missing with a warning.
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
