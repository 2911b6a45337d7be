"""Push: read the bundle where it lies, ask the registry what it has, carry the difference."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from mirror.bundle.reader import BundleReader
from mirror.bundle.verify import check_signature
from mirror.events import OnEvent, PhaseStarted, Warned
from mirror.events import ignore as ignore_events
from mirror.oci import Digest
from mirror.operations.pull import count
from mirror.registry import RegistryWriter
from mirror.release.discovery import discovery_images
from mirror.release.tree import TargetTree, publication_stage
from mirror.sync import Inventory, Overlay, Plan, TransferReport, make_plan, transfer, union
from mirror.sync.registry import RegistryTarget
from mirror.sync.workers import DEFAULT_JOBS


@dataclass(frozen=True, slots=True)
class PushReport:
    """A finished push: the target now holds all of `inventory`."""

    target: str
    inventory: Inventory
    digest: Digest
    plan: Plan
    done: TransferReport

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "target": self.target,
            "inventory": str(self.digest),
            "uploaded": {
                "blobs": sum(step.mount_from is None for step in self.plan.blobs),
                "bytes": self.done.sent,
                "manifests": self.done.manifests,
                "tags": self.done.tags,
            },
            **count(self.inventory),
        }


def push(
    reader: BundleReader,
    client: RegistryWriter,
    tree: TargetTree,
    *,
    key: bytes | None = None,
    jobs: int = DEFAULT_JOBS,
    on_event: OnEvent = ignore_events,
    cancel: threading.Event | None = None,
) -> PushReport:
    """Make the registry hold all that the bundle holds, below the tree's root.

    Nothing is unpacked. Blobs come first, then manifests, then tags; release channels turn when
    all images are there, and last of all the index of modules, packages and plugins. A push that
    was stopped anywhere is completed by running it again, and carries only what is lacking.
    With `key`, a public key in PEM, the bundle must have been signed by its holder.

    Raises:
        SignatureError: the bundle was not signed by the holder of `key`; nothing was written.
        DamagedBundleError: the bundle is not whole; nothing was written.
        IncompleteError: some content could not be brought over; no tag names what lacks.
        CancelledError: `cancel` was set.
    """
    cancel = cancel or threading.Event()
    if key is not None:
        check_signature(reader, key)
    bundle = reader.inventory()
    for notice in reader.contents.notices:
        on_event(Warned(notice))
    index = discovery_images(bundle)
    wanted = union([bundle, index.inventory()])
    target = RegistryTarget(client, tree.locate, f"registry {tree.root}", jobs=jobs, cancel=cancel)
    client.ping()  # one clear answer about name, TLS and login, before many ask in parallel
    on_event(PhaseStarted("comparing with the registry"))
    plan = make_plan(wanted, target.held(wanted), stage=publication_stage)
    done = transfer(
        plan, Overlay(reader, index), target, jobs=jobs, on_event=on_event, cancel=cancel
    )
    return PushReport(str(tree.root), bundle, bundle.digest(), plan, done)
