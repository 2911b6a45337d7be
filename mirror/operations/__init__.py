"""What a person asks for, as one call each. The rooms below do the work."""

from mirror.bundle.writer import Packing
from mirror.operations.adopt import Adoption, adopt
from mirror.operations.compare import (
    DiffReport,
    RegistryReport,
    ReplicaStatus,
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
from mirror.operations.pull import PullPlan, PullReport, plan_pull, pull
from mirror.operations.push import plan_push, push, push_to_all
from mirror.operations.push_reports import MemberReport, PushPlan, PushReport, QuorumReport
from mirror.operations.results import Outcome, ReplicaResult
from mirror.operations.rollback import RollbackReport, rollback
from mirror.operations.sync import SyncReport, sync_replicas
from mirror.operations.trees import replica_trees

__all__ = [
    "Adoption",
    "DiffReport",
    "HistoryReport",
    "MemberReport",
    "MergeReport",
    "Outcome",
    "Packing",
    "PruneReport",
    "PullPlan",
    "PullReport",
    "PushPlan",
    "PushReport",
    "QuorumReport",
    "RegistryInventory",
    "RegistryReport",
    "ReplicaResult",
    "ReplicaStatus",
    "RollbackReport",
    "StatusReport",
    "SyncReport",
    "adopt",
    "diff",
    "history",
    "merge",
    "plan_pull",
    "plan_push",
    "prune",
    "pull",
    "push",
    "push_to_all",
    "registry_inventory",
    "replica_trees",
    "rollback",
    "status",
    "sync_replicas",
    "verify",
    "verify_registry",
]
