"""What a person asks for, as one call each: pull, push, verify. The rooms below do the work."""

from mirror.operations.pull import PullPlan, PullReport, plan_pull, pull
from mirror.operations.push import PushReport, push
from mirror.operations.push_plan import PushPlan, plan_push
from mirror.operations.verify import RegistryReport, verify, verify_registry

__all__ = [
    "PullPlan",
    "PullReport",
    "PushPlan",
    "PushReport",
    "RegistryReport",
    "plan_pull",
    "plan_push",
    "pull",
    "push",
    "verify",
    "verify_registry",
]
