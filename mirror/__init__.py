"""Carry Deckhouse Kubernetes Platform images across an air gap and prove that they arrived."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mirror.bundle.reader import BundleReader
    from mirror.bundle.verify import BundleReport
    from mirror.errors import MirrorError
    from mirror.oci import Descriptor, Digest, Manifest, Reference, Repository
    from mirror.operations import (
        MergeReport,
        PullReport,
        PushReport,
        RegistryInventory,
        RegistryReport,
        merge,
        pull,
        push,
        registry_inventory,
        verify,
        verify_registry,
    )
    from mirror.registry import ConnectionOptions, Credentials, RegistryClient, find_credentials
    from mirror.release.selection import Wishes
    from mirror.release.tree import SourceTree, TargetTree
    from mirror.sync import Finding, Inventory, MemoryStore, Plan, make_plan, transfer

__all__ = [
    "BundleReader",
    "BundleReport",
    "ConnectionOptions",
    "Credentials",
    "Descriptor",
    "Digest",
    "Finding",
    "Inventory",
    "Manifest",
    "MemoryStore",
    "MergeReport",
    "MirrorError",
    "Plan",
    "PullReport",
    "PushReport",
    "Reference",
    "RegistryClient",
    "RegistryInventory",
    "RegistryReport",
    "Repository",
    "SourceTree",
    "TargetTree",
    "Wishes",
    "find_credentials",
    "make_plan",
    "merge",
    "pull",
    "push",
    "registry_inventory",
    "transfer",
    "verify",
    "verify_registry",
]

_HOMES = {
    "bundle.reader": ("BundleReader",),
    "bundle.verify": ("BundleReport",),
    "errors": ("MirrorError",),
    "oci": ("Descriptor", "Digest", "Manifest", "Reference", "Repository"),
    "operations": (
        *("MergeReport", "PullReport", "PushReport", "RegistryInventory", "RegistryReport"),
        *("merge", "pull", "push", "registry_inventory", "verify", "verify_registry"),
    ),
    "registry": ("ConnectionOptions", "Credentials", "RegistryClient", "find_credentials"),
    "release.selection": ("Wishes",),
    "release.tree": ("SourceTree", "TargetTree"),
    "sync": ("Finding", "Inventory", "MemoryStore", "Plan", "make_plan", "transfer"),
}
"""Module → what of it is public. Imported when first used, so that the program starts at once."""


if not TYPE_CHECKING:  # type checkers know all names from above, and find wrong ones

    def __getattr__(name: str) -> Any:
        for module, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"mirror.{module}"), name)
        raise AttributeError(f"module 'mirror' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
