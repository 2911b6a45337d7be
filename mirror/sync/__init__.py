"""Inventory, diff, plan, transfer: what is wanted, what is there, and carrying the difference."""

from mirror.sync.content import BlobContent, Source, Target
from mirror.sync.failover import FailoverSource, Holder
from mirror.sync.findings import Dependents, Finding
from mirror.sync.inventory import Gap, Inventory, InventoryBuilder, union
from mirror.sync.memory import MemoryStore
from mirror.sync.nodes import ManifestNode, RepositoryContent
from mirror.sync.plan import CopyBlob, Plan, PutManifest, PutTag, applied, make_plan
from mirror.sync.transfer import TransferReport, transfer

__all__ = [
    "BlobContent",
    "CopyBlob",
    "Dependents",
    "FailoverSource",
    "Finding",
    "Gap",
    "Holder",
    "Inventory",
    "InventoryBuilder",
    "ManifestNode",
    "MemoryStore",
    "Plan",
    "PutManifest",
    "PutTag",
    "RepositoryContent",
    "Source",
    "Target",
    "TransferReport",
    "applied",
    "make_plan",
    "transfer",
    "union",
]
