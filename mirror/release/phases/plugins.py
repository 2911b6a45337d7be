"""Plugins of the `d8` program: those that the selected modules need, and those named."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from semver import Version

from mirror.errors import DeniedError
from mirror.layout import PLUGINS, archive_of, parse_version
from mirror.release.plugins import (
    Contract,
    PluginChoice,
    PluginSelection,
    parse_contract,
    select_plugins,
    valid_plugin_name,
)
from mirror.release.plugins.contract import ANNOTATION
from mirror.release.selection import Wanted, Wishes
from mirror.release.source import ReleaseSource


@dataclass(frozen=True, slots=True)
class PluginPhase:
    """The plugins that travel, by name, and their images."""

    images: tuple[Wanted, ...] = ()
    choices: Mapping[str, tuple[PluginChoice, ...]] = field(default_factory=dict)


def select_plugin_images(
    source: ReleaseSource,
    wishes: Wishes,
    modules: Mapping[str, Collection[str]],
    platform: Collection[Version],
) -> PluginPhase:
    """The plugins for a bundle with these module tags and platform releases.

    Raises:
        NotFoundError, SourceContentError: a plugin that was named cannot be had.
    """
    if wishes.plugins is None:
        return PluginPhase()
    for warning in wishes.plugins.warnings:
        source.warn(warning)
    versions = {
        name: [version for tag in tags if (version := parse_version(tag)) is not None]
        for name, tags in modules.items()
    }
    selected = select_plugins(
        _Facts(source, wishes.plugins.names),
        modules=versions,
        platform=platform,
        wanted=[wishes.plugins.items[name] for name in wishes.plugins.names],
        proxy=wishes.probing,
    )
    _tell(source, selected)
    choices: dict[str, list[PluginChoice]] = {}
    for choice in selected.choices:
        choices.setdefault(choice.name, []).append(choice)
    return PluginPhase(
        tuple(_wanted(choice) for choice in selected.choices),
        {name: tuple(found) for name, found in choices.items()},
    )


def _tell(source: ReleaseSource, selected: PluginSelection) -> None:
    for skipped in selected.skipped:
        source.warn(f"plugin {skipped.name} is left out: {skipped.reason}")
    for warning in selected.warnings:
        source.warn(warning)


def _wanted(choice: PluginChoice) -> Wanted:
    path = f"{PLUGINS}/{choice.name}"
    why = " and ".join(edge.subject for edge in choice.edges) or "the selection of plugins"
    return Wanted(archive_of(path), path, choice.tag, choice.tag, why)


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
