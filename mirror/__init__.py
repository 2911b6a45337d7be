"""Carry Deckhouse Kubernetes Platform images across an air gap and prove that they arrived."""

from mirror.bundle.reader import BundleReader
from mirror.bundle.verify import BundleReport
from mirror.errors import MirrorError
from mirror.oci import Descriptor, Digest, Manifest, Reference, Repository
from mirror.operations import (
    PullReport,
    PushReport,
    RegistryReport,
    pull,
    push,
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
    "MirrorError",
    "Plan",
    "PullReport",
    "PushReport",
    "Reference",
    "RegistryClient",
    "RegistryReport",
    "Repository",
    "SourceTree",
    "TargetTree",
    "Wishes",
    "find_credentials",
    "make_plan",
    "pull",
    "push",
    "transfer",
    "verify",
    "verify_registry",
]
