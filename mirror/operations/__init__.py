"""What a person asks for, as one call each: pull, push, verify, inventory, merge. The rooms below
do the work."""

from mirror.operations.inventory import RegistryInventory, registry_inventory
from mirror.operations.merge import MergeReport, merge
from mirror.operations.pack import Packing
from mirror.operations.pull import PullPlan, PullReport, plan_pull, pull
from mirror.operations.push import PushReport, push
from mirror.operations.verify import RegistryReport, verify, verify_registry

__all__ = [
    "MergeReport",
    "Packing",
    "PullPlan",
    "PullReport",
    "PushReport",
    "RegistryInventory",
    "RegistryReport",
    "merge",
    "plan_pull",
    "pull",
    "push",
    "registry_inventory",
    "verify",
    "verify_registry",
]
