"""Plugins of the `d8` program: what each needs, and which of them belong in a bundle. Pure."""

from mirror.release.plugins.contract import (
    Contract,
    Group,
    Requirement,
    parse_contract,
    valid_plugin_name,
)
from mirror.release.plugins.selection import Edge, PluginChoice, PluginSelection, Skipped
from mirror.release.plugins.solver import BUILT_IN, PluginFacts, select_plugins

__all__ = [
    "BUILT_IN",
    "Contract",
    "Edge",
    "Group",
    "PluginChoice",
    "PluginFacts",
    "PluginSelection",
    "Requirement",
    "Skipped",
    "parse_contract",
    "select_plugins",
    "valid_plugin_name",
]
