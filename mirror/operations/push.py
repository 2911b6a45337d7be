"""Push: read the bundle where it lies, ask the registry what it has, carry the difference."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from mirror.bundle.reader import BundleReader
from mirror.events import OnEvent, PhaseStarted
from mirror.events import ignore as ignore_events
from mirror.oci import Digest
from mirror.operations.pull import count
from mirror.operations.push_plan import wanted_from
from mirror.registry import RegistryClient, UploadJournal
from mirror.release.tree import TargetTree, publication_stage
from mirror.sync import Inventory, Overlay, Plan, TransferReport, make_plan, transfer
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
    client: RegistryClient,
    tree: TargetTree,
    *,
    key: bytes | None = None,
    journal: UploadJournal | None = None,
    check_access: bool = True,
    jobs: int = DEFAULT_JOBS,
    on_event: OnEvent = ignore_events,
    cancel: threading.Event | None = None,
) -> PushReport:
    """Make the registry hold all that the bundle holds, below the tree's root.

    Nothing is unpacked. Blobs come first, then manifests, then tags; release channels turn when
    all images are there, and last of all the index of modules, packages and plugins. A push that
    was stopped anywhere is completed by running it again, and carries only what is lacking.
    With `key`, a public key in PEM, the bundle must have been signed by its holder. With `journal`
    a blob that was half sent when a process died is continued. Unless `check_access` is False, the
    right to write is proved before the first byte moves.

    Raises:
        SignatureError: the bundle was not signed by the holder of `key`; nothing was written.
        DamagedBundleError: the bundle is not whole; nothing was written.
        DeniedError: the registry may not be written to; nothing was written.
        IncompleteError: some content could not be brought over; no tag names what lacks.
        CancelledError: `cancel` was set.
    """
    cancel = cancel or threading.Event()
    bundle, index, wanted = wanted_from(reader, key, on_event)
    target = RegistryTarget(
        client,
        tree.locate,
        f"registry {tree.root}",
        jobs=jobs,
        cancel=cancel,
        journal=journal,
        on_event=on_event,
    )
    client.ping()  # one clear answer about name, TLS and login, before many ask in parallel
    on_event(PhaseStarted("comparing with the registry"))
    plan = make_plan(wanted, target.glance(wanted), stage=publication_stage)
    try:
        if check_access:
            target.check_access(plan)
        done = transfer(
            plan, Overlay(reader, index), target, jobs=jobs, on_event=on_event, cancel=cancel
        )
    finally:
        target.release()
    return PushReport(str(tree.root), bundle, bundle.digest(), plan, done)
