"""Pull: select at the source, lay the bundle out, carry the content, seal."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mirror.bundle.archive import lay_out
from mirror.bundle.seal import Seal
from mirror.bundle.writer import BundleWriter, check_folder
from mirror.errors import SourceContentError
from mirror.events import OnEvent
from mirror.events import ignore as ignore_events
from mirror.oci import Digest
from mirror.registry import RegistryClient
from mirror.release.resolve import resolve
from mirror.release.select import select
from mirror.release.selection import Selection, Wishes
from mirror.release.source import ReleaseSource
from mirror.release.tree import SourceTree
from mirror.sync import Inventory, make_plan, transfer
from mirror.sync.workers import DEFAULT_JOBS


@dataclass(frozen=True, slots=True)
class PullReport:
    """A finished pull. `archives` maps file names to sizes in bytes; `fetched` is bytes of blobs
    that came over the wire, each once however many archives hold it."""

    folder: Path
    tree: SourceTree
    selection: Selection
    inventory: Inventory
    digest: Digest
    archives: Mapping[str, int]
    fetched: int

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "bundle": str(self.folder),
            "source": str(self.tree.root),
            "edition": self.tree.edition,
            "platform": {
                "versions": list(self.selection.platform_versions),
                "channels": list(self.selection.channels),
            },
            "modules": {name: list(versions) for name, versions in self.selection.modules.items()},
            "archives": dict(self.archives),
            "bytes": sum(self.archives.values()),
            "fetched": self.fetched,
            "inventory": str(self.digest),
            **count(self.inventory),
        }


def count(inventory: Inventory) -> dict[str, int]:
    """How many of each kind an inventory names; manifests and blobs counted once each."""
    return {
        "repositories": len(inventory.repositories),
        "tags": sum(len(content.tags) for content in inventory.repositories.values()),
        "manifests": len(inventory.manifest_nodes()),
        "blobs": len(inventory.blob_sizes()),
    }


def pull(
    client: RegistryClient,
    tree: SourceTree,
    wishes: Wishes,
    folder: Path,
    *,
    force: bool = False,
    jobs: int = DEFAULT_JOBS,
    on_event: OnEvent = ignore_events,
    cancel: threading.Event | None = None,
) -> PullReport:
    """Pack what `wishes` select at the source into a new bundle in `folder`.

    Whatever fails, no archive carries its final name until all are complete and durable, and an
    earlier bundle in `folder` (see `force`) is left as it was until then.

    Raises:
        InputError: `folder` is not empty and `force` is not given.
        NoSpaceError: the disk is too small for the plan; nothing was fetched.
        SourceContentError: the source's release tree is incomplete or contradicts itself.
        IncompleteError: some content could not be fetched.
        CancelledError: `cancel` was set.
    """
    cancel = cancel or threading.Event()
    check_folder(folder, force=force)
    client.ping()  # one clear answer about name, TLS and login, before many ask in parallel
    source = ReleaseSource(client, tree, jobs=jobs, on_event=on_event, cancel=cancel)
    selection = select(source, wishes)
    inventories = resolve(source, selection)
    if not inventories:
        raise SourceContentError(f"nothing at {tree.root} was selected; there is no bundle to make")
    archives = [
        lay_out(name, inventory, {path: tree.origin(path) for path in inventory.repositories})
        for name, inventory in inventories.items()
    ]
    seal = Seal.over(archives, wishes.to_document(), f"mirror {version('mirror')}")
    with BundleWriter(folder, archives) as writer:
        plan = make_plan(seal.inventory, writer.held(seal.inventory))
        plan = replace(plan, blobs=writer.in_archive_order(plan.blobs))
        report = transfer(plan, source.content, writer, jobs=jobs, on_event=on_event, cancel=cancel)
        writer.finish(seal)
    return PullReport(
        folder,
        tree,
        selection,
        seal.inventory,
        seal.inventory.digest(),
        {archive.name: archive.size for archive in archives},
        report.sent,
    )
