"""Plugins of the command line `d8`: those that the selected modules need, and those named."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from semver import Version

from mirror.release.selection import PluginChoice, Wanted, Wishes
from mirror.release.source import ReleaseSource


@dataclass(frozen=True, slots=True)
class PluginPhase:
    """The plugins that travel, and why."""

    images: tuple[Wanted, ...] = ()
    choices: Mapping[str, tuple[PluginChoice, ...]] = field(default_factory=dict)


def select_plugin_images(
    source: ReleaseSource,
    wishes: Wishes,
    modules: Mapping[str, Collection[str]],
    platform: Collection[Version],
) -> PluginPhase:
    """PENDING"""
    return PluginPhase()
