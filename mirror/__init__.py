"""Carry Deckhouse Kubernetes Platform images across an air gap and prove that they arrived."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mirror.bundle.reader import BundleReader
    from mirror.bundle.verify import BundleReport
    from mirror.errors import MirrorError
    from mirror.modes import outcomes
    from mirror.modes.addressing import Route, routes_for
    from mirror.modes.check import CheckReport, check_images, impatient, targets_for
    from mirror.modes.client import ModeClient, connect
    from mirror.modes.constants import ConditionType, User
    from mirror.modes.outcomes import ClusterFacts, StepOutcome
    from mirror.modes.plan import SwitchPlan, plan_switch
    from mirror.modes.required import RequiredSet, required_images
    from mirror.modes.routes import Mode, Plane
    from mirror.modes.settings import Account, ClusterAccess, RegistrySettings
    from mirror.modes.state import RegistryState, inputs_hash
    from mirror.nodeconfig.cluster import load_access, load_facts, load_nodes
    from mirror.nodeconfig.render import Rendered, RenderOptions, access_of, render, write_cluster
    from mirror.nodeconfig.service_secrets import prepare_secrets, read_secrets, write_secrets
    from mirror.oci import Descriptor, Digest, Manifest, Reference, Repository
    from mirror.operations.compare import (
        DiffReport,
        RegistryReport,
        StatusReport,
        diff,
        status,
        verify,
        verify_registry,
    )
    from mirror.operations.history import HistoryReport, history
    from mirror.operations.inventory import RegistryInventory, registry_inventory
    from mirror.operations.merge import MergeReport, merge
    from mirror.operations.prune import PruneReport, prune
    from mirror.operations.pull import PullReport, pull
    from mirror.operations.push import push, push_to_all
    from mirror.operations.push_reports import MemberReport, PushReport, QuorumReport
    from mirror.operations.results import ReplicaResult
    from mirror.operations.rollback import RollbackReport, rollback
    from mirror.operations.sync import SyncReport, sync_replicas
    from mirror.operations.trees import replica_trees
    from mirror.registry import ConnectionOptions, Credentials, RegistryClient, find_credentials
    from mirror.release.selection import Selection
    from mirror.release.source import SourceTree
    from mirror.sync import Finding, Inventory, MemoryStore, Plan, make_plan, transfer
    from mirror.sync.tree import RegistryTree

__all__ = [
    "Account",
    "BundleReader",
    "BundleReport",
    "CheckReport",
    "ClusterAccess",
    "ClusterFacts",
    "ConditionType",
    "ConnectionOptions",
    "Credentials",
    "Descriptor",
    "DiffReport",
    "Digest",
    "Finding",
    "HistoryReport",
    "Inventory",
    "Manifest",
    "MemberReport",
    "MemoryStore",
    "MergeReport",
    "MirrorError",
    "Mode",
    "ModeClient",
    "Plan",
    "Plane",
    "PruneReport",
    "PullReport",
    "PushReport",
    "QuorumReport",
    "Reference",
    "RegistryClient",
    "RegistryInventory",
    "RegistryReport",
    "RegistrySettings",
    "RegistryState",
    "RegistryTree",
    "RenderOptions",
    "Rendered",
    "ReplicaResult",
    "Repository",
    "RequiredSet",
    "RollbackReport",
    "Route",
    "Selection",
    "SourceTree",
    "StatusReport",
    "StepOutcome",
    "SwitchPlan",
    "SyncReport",
    "User",
    "access_of",
    "check_images",
    "connect",
    "diff",
    "find_credentials",
    "history",
    "impatient",
    "inputs_hash",
    "load_access",
    "load_facts",
    "load_nodes",
    "make_plan",
    "merge",
    "outcomes",
    "plan_switch",
    "prepare_secrets",
    "prune",
    "pull",
    "push",
    "push_to_all",
    "read_secrets",
    "registry_inventory",
    "render",
    "replica_trees",
    "required_images",
    "rollback",
    "routes_for",
    "status",
    "sync_replicas",
    "targets_for",
    "transfer",
    "verify",
    "verify_registry",
    "write_cluster",
    "write_secrets",
]

_HOMES = {
    "bundle.reader": ("BundleReader",),
    "bundle.verify": ("BundleReport",),
    "errors": ("MirrorError",),
    "modes": ("outcomes",),
    "modes.addressing": ("Route", "routes_for"),
    "modes.check": ("CheckReport", "check_images", "impatient", "targets_for"),
    "modes.client": ("ModeClient", "connect"),
    "modes.constants": ("ConditionType", "User"),
    "modes.outcomes": ("ClusterFacts", "StepOutcome"),
    "modes.plan": ("SwitchPlan", "plan_switch"),
    "modes.required": ("RequiredSet", "required_images"),
    "modes.routes": ("Mode", "Plane"),
    "modes.settings": ("Account", "ClusterAccess", "RegistrySettings"),
    "modes.state": ("RegistryState", "inputs_hash"),
    "nodeconfig.cluster": ("load_access", "load_facts", "load_nodes"),
    "nodeconfig.render": ("RenderOptions", "Rendered", "render", "access_of", "write_cluster"),
    "nodeconfig.service_secrets": ("prepare_secrets", "read_secrets", "write_secrets"),
    "oci": ("Descriptor", "Digest", "Manifest", "Reference", "Repository"),
    "operations.compare": (
        *("DiffReport", "RegistryReport", "StatusReport"),
        *("diff", "status", "verify", "verify_registry"),
    ),
    "operations.history": ("HistoryReport", "history"),
    "operations.inventory": ("RegistryInventory", "registry_inventory"),
    "operations.merge": ("MergeReport", "merge"),
    "operations.prune": ("PruneReport", "prune"),
    "operations.pull": ("PullReport", "pull"),
    "operations.push": ("push", "push_to_all"),
    "operations.push_reports": ("MemberReport", "PushReport", "QuorumReport"),
    "operations.results": ("ReplicaResult",),
    "operations.rollback": ("RollbackReport", "rollback"),
    "operations.sync": ("SyncReport", "sync_replicas"),
    "operations.trees": ("replica_trees",),
    "registry": ("ConnectionOptions", "Credentials", "RegistryClient", "find_credentials"),
    "release.selection": ("Selection",),
    "release.source": ("SourceTree",),
    "sync": ("Finding", "Inventory", "MemoryStore", "Plan", "make_plan", "transfer"),
    "sync.tree": ("RegistryTree",),
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
