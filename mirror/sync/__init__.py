"""Inventory, diff, plan, transfer: what is wanted, what is there, and carrying the difference."""

from mirror.oci import ManifestNode
from mirror.sync.content import MemoryStore, Source, Target
from mirror.sync.failover import BlobContent, FailoverSource, Holder
from mirror.sync.inventory import Gap, Inventory, InventoryBuilder, RepositoryContent, union
from mirror.sync.observation import Dependents, Finding
from mirror.sync.plan import CopyBlob, Plan, PutManifest, PutTag, by_archive, make_plan
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
    "by_archive",
    "make_plan",
    "transfer",
    "union",
]
