"""What a person asks for, as one call each. The rooms below do the work."""

from mirror.operations.history import HistoryReport, history
from mirror.operations.pull import PullPlan, PullReport, plan_pull, pull
from mirror.operations.push import PushReport, push
from mirror.operations.quorum import Member, QuorumReport, push_to_all
from mirror.operations.rollback import RollbackReport, rollback
from mirror.operations.verify import RegistryReport, verify, verify_registry

__all__ = [
    "HistoryReport",
    "Member",
    "PullPlan",
    "PullReport",
    "PushReport",
    "QuorumReport",
    "RegistryReport",
    "RollbackReport",
    "history",
    "plan_pull",
    "pull",
    "push",
    "push_to_all",
    "rollback",
    "verify",
    "verify_registry",
]
