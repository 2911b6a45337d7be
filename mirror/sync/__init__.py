"""Inventory, diff, plan, transfer: what is wanted, what is there, and carrying the difference."""

from mirror.sync.content import BlobContent, HeldContent, Overlay, Source, Target
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
    "Finding",
    "Gap",
    "HeldContent",
    "Inventory",
    "InventoryBuilder",
    "ManifestNode",
    "MemoryStore",
    "Overlay",
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
