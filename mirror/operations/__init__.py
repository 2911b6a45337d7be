"""What a person asks for, as one call each. The rooms below do the work."""

from mirror.operations.history import HistoryReport, history
from mirror.operations.pull import PullPlan, PullReport, plan_pull, pull
from mirror.operations.push import PushReport, push
from mirror.operations.rollback import RollbackReport, rollback
from mirror.operations.verify import RegistryReport, verify, verify_registry

__all__ = [
    "HistoryReport",
    "PullPlan",
    "PullReport",
    "PushReport",
    "RegistryReport",
    "RollbackReport",
    "history",
    "plan_pull",
    "pull",
    "push",
    "rollback",
    "verify",
    "verify_registry",
]
