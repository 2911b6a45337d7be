"""Push: read the bundle where it lies, ask the registry what it has, carry the difference."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mirror.bundle.carriage import lacking
from mirror.bundle.reader import BundleReader
from mirror.bundle.verify import check_signature
from mirror.errors import MissingBaseError
from mirror.events import OnEvent, PhaseStarted, Warned
from mirror.events import ignore as ignore_events
from mirror.oci import Digest
from mirror.operations.pull import count
from mirror.registry import RegistryClient
from mirror.release.discovery import discovery_images
from mirror.release.tree import TargetTree, publication_stage
from mirror.sync import (
    Finding,
    HeldContent,
    Inventory,
    Overlay,
    Plan,
    TransferReport,
    make_plan,
    transfer,
    union,
)
from mirror.sync.registry import RegistrySource, RegistryTarget
from mirror.sync.workers import DEFAULT_JOBS


@dataclass(frozen=True, slots=True)
class PushReport:
    """A finished push: the target now holds all of `inventory`.

    `bases` are the inventories that deltas among what was pushed were made against.
    """

    target: str
    inventory: Inventory
    digest: Digest
    plan: Plan
    done: TransferReport
    bases: tuple[Digest, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "target": self.target,
            "inventory": str(self.digest),
            **({"delta": {"bases": [str(base) for base in self.bases]}} if self.bases else {}),
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
    jobs: int = DEFAULT_JOBS,
    on_event: OnEvent = ignore_events,
    cancel: threading.Event | None = None,
) -> PushReport:
    """Make the registry hold all that the bundle holds, below the tree's root.

    Nothing is unpacked. Blobs come first, then manifests, then tags; release channels turn when
    all images are there, and last of all the index of modules, packages and plugins. A push that
    was stopped anywhere is completed by running it again, and carries only what is lacking.
    With `key`, a public key in PEM, the bundle must have been signed by its holder.

    What a delta leaves out must be in the registry already; blobs may be there in another
    repository, from which they are mounted.

    Raises:
        MissingBaseError: the registry lacks what a delta leaves out; nothing was written.
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
    needed = reader.needed
    held = target.held(union([wanted, needed]))
    _check_base(reader, lacking(bundle, needed, held, target.name))
    plan = make_plan(wanted, held, stage=publication_stage)
    # What a delta leaves out is there, and is read there where a tag or a second repository
    # needs it.
    rest = HeldContent(RegistrySource(client, tree.locate, target.name), held)
    done = transfer(
        plan, Overlay(reader, index, rest), target, jobs=jobs, on_event=on_event, cancel=cancel
    )
    return PushReport(str(tree.root), bundle, bundle.digest(), plan, done, reader.bases)


def _check_base(reader: BundleReader, missing: Sequence[Finding]) -> None:
    """Raise MissingBaseError if anything is."""
    if missing:
        place = missing[0].place
        raise MissingBaseError(
            f"{place} lacks {len(missing)} of the manifests and blobs that {reader.name}, a delta, "
            f"leaves to its base (inventory {', '.join(map(str, reader.bases))}); push that base "
            "first, or a complete bundle; nothing was written",
            [str(finding).removeprefix(f"{place}: ") for finding in missing],
        )
