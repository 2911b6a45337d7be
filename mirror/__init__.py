"""Carry Deckhouse Kubernetes Platform images across an air gap and prove that they arrived."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mirror.bundle.reader import BundleReader
    from mirror.bundle.verify import BundleReport
    from mirror.errors import MirrorError
    from mirror.job import Job, start
    from mirror.modes import outcomes
    from mirror.modes.addressing import Plane, Route, routes_for
    from mirror.modes.check import check_images, impatient, targets_for
    from mirror.modes.check_report import CheckReport
    from mirror.modes.client import ModeClient, connect
    from mirror.modes.conditions import ConditionType, Outcome
    from mirror.modes.facts import ClusterFacts
    from mirror.modes.required import RequiredSet, required_images
    from mirror.modes.settings import Mode, RegistrySettings
    from mirror.modes.sites import Account, Sites, User
    from mirror.modes.state import RegistryState, inputs_hash
    from mirror.modes.transitions import SwitchPlan, plan_switch
    from mirror.nodeconfig.cluster import load_facts, load_nodes, load_sites
    from mirror.nodeconfig.render import Rendered, RenderOptions, render, sites_of, write_cluster
    from mirror.nodeconfig.service_secrets import prepare_secrets, read_secrets, write_secrets
    from mirror.oci import Descriptor, Digest, Manifest, Reference, Repository
    from mirror.operations import (
        DiffReport,
        HistoryReport,
        MemberReport,
        MergeReport,
        PruneReport,
        PullReport,
        PushReport,
        QuorumReport,
        RegistryInventory,
        RegistryReport,
        ReplicaResult,
        RollbackReport,
        StatusReport,
        SyncReport,
        diff,
        history,
        merge,
        prune,
        pull,
        push,
        push_to_all,
        registry_inventory,
        replica_trees,
        rollback,
        status,
        sync_replicas,
        verify,
        verify_registry,
    )
    from mirror.registry import ConnectionOptions, Credentials, RegistryClient, find_credentials
    from mirror.release.selection import Selection
    from mirror.release.source import SourceTree
    from mirror.run import Cancellation, Run
    from mirror.sync import Finding, Inventory, MemoryStore, Plan, make_plan, transfer
    from mirror.sync.tree import RegistryTree

__all__ = [
    "Account",
    "BundleReader",
    "BundleReport",
    "Cancellation",
    "CheckReport",
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
    "Job",
    "Manifest",
    "MemberReport",
    "MemoryStore",
    "MergeReport",
    "MirrorError",
    "Mode",
    "ModeClient",
    "Outcome",
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
    "Run",
    "Selection",
    "Sites",
    "SourceTree",
    "StatusReport",
    "SwitchPlan",
    "SyncReport",
    "User",
    "check_images",
    "connect",
    "diff",
    "find_credentials",
    "history",
    "impatient",
    "inputs_hash",
    "load_facts",
    "load_nodes",
    "load_sites",
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
    "sites_of",
    "start",
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
    "job": ("Job", "start"),
    "modes": ("outcomes",),
    "modes.addressing": ("Plane", "Route", "routes_for"),
    "modes.check": ("check_images", "impatient", "targets_for"),
    "modes.check_report": ("CheckReport",),
    "modes.client": ("ModeClient", "connect"),
    "modes.conditions": ("ConditionType", "Outcome"),
    "modes.facts": ("ClusterFacts",),
    "modes.required": ("RequiredSet", "required_images"),
    "modes.settings": ("Mode", "RegistrySettings"),
    "modes.sites": ("Account", "Sites", "User"),
    "modes.state": ("RegistryState", "inputs_hash"),
    "modes.transitions": ("SwitchPlan", "plan_switch"),
    "nodeconfig.cluster": ("load_facts", "load_nodes", "load_sites"),
    "nodeconfig.render": ("RenderOptions", "Rendered", "render", "sites_of", "write_cluster"),
    "nodeconfig.service_secrets": ("prepare_secrets", "read_secrets", "write_secrets"),
    "oci": ("Descriptor", "Digest", "Manifest", "Reference", "Repository"),
    "operations": (
        *(
            "DiffReport",
            "HistoryReport",
            "MemberReport",
            "MergeReport",
            "PruneReport",
            "PullReport",
        ),
        *("PushReport", "QuorumReport", "RegistryInventory", "RegistryReport", "ReplicaResult"),
        *("RollbackReport", "StatusReport", "SyncReport", "diff", "history", "merge"),
        *("prune", "pull", "push", "push_to_all", "registry_inventory", "replica_trees"),
        *("rollback", "status", "sync_replicas", "verify", "verify_registry"),
    ),
    "registry": ("ConnectionOptions", "Credentials", "RegistryClient", "find_credentials"),
    "release.selection": ("Selection",),
    "release.source": ("SourceTree",),
    "run": ("Cancellation", "Run"),
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
