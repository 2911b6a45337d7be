"""Pull: select at the source, lay the bundle out, carry the content, seal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mirror.bundle.archive import Archive, lay_out
from mirror.bundle.folder import check_folder
from mirror.bundle.names import source_reference
from mirror.bundle.seal import Seal
from mirror.bundle.writer import BundleWriter
from mirror.errors import SourceContentError
from mirror.events import OnEvent
from mirror.events import ignore as ignore_events
from mirror.oci import Digest
from mirror.registry import RegistryClient
from mirror.release.resolve import Company, resolve
from mirror.release.select import select
from mirror.release.selection import Selection, Wishes
from mirror.release.source import ReleaseSource
from mirror.release.tree import SourceTree
from mirror.sync import Inventory, make_plan, transfer
from mirror.sync.workers import DEFAULT_JOBS


@dataclass(frozen=True, slots=True)
class PullReport:
    """A finished pull. `archives` maps file names to sizes in bytes; `fetched` is bytes of blobs
    that came over the wire, each once however many archives hold it. `stored` is what archives
    take on the disk, if they are compressed."""

    folder: Path
    tree: SourceTree
    selection: Selection
    inventory: Inventory
    digest: Digest
    archives: Mapping[str, int]
    fetched: int
    stored: Mapping[str, int] | None = None

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "bundle": str(self.folder),
            "source": str(self.tree.root),
            "edition": self.tree.edition,
            **self.selection.to_document(),
            "archives": dict(self.archives),
            "bytes": sum(self.archives.values()),
            "fetched": self.fetched,
            "inventory": str(self.digest),
            **count(self.inventory),
            **({} if self.stored is None else {"compressed": self._compressed(self.stored)}),
        }

    def _compressed(self, stored: Mapping[str, int]) -> dict[str, Any]:
        size = sum(stored.values())
        return {
            "archives": dict(stored),
            "bytes": size,
            "saved": sum(self.archives.values()) - size,
        }


def count(inventory: Inventory) -> dict[str, int]:
    """How many of each kind an inventory names; manifests and blobs counted once each."""
    return {
        "repositories": len(inventory.repositories),
        "tags": sum(len(content.tags) for content in inventory.repositories.values()),
        "manifests": len(inventory.manifest_nodes()),
        "blobs": len(inventory.blob_sizes()),
    }


@dataclass(frozen=True, slots=True)
class PullPlan:
    """A pull that is decided and not begun: every image, by digest, and every archive, laid out."""

    tree: SourceTree
    selection: Selection
    archives: tuple[Archive, ...]
    seal: Seal
    source: ReleaseSource = field(repr=False)
    jobs: int = DEFAULT_JOBS

    @property
    def inventory(self) -> Inventory:
        """All that the bundle will hold."""
        return self.seal.inventory

    def references(self) -> Iterator[PlannedReference]:
        """Every image that gets a name in the bundle, in canonical order."""
        for archive in self.archives:
            for path, content in archive.inventory.repositories.items():
                for tag, digest in sorted(content.tags.items()):
                    source = source_reference(archive.origins[path], tag, digest)
                    size = content.closure_size(digest)
                    yield PlannedReference(archive.name, path, tag, digest, size, source)

    def to_document(self, base: Inventory | None = None) -> dict[str, Any]:
        """As JSON values, for `--json`; `base` is what a delta would leave out."""
        inventory = self.inventory
        fetched = sum(inventory.blob_sizes().values())
        document: dict[str, Any] = {
            "source": str(self.tree.root),
            "edition": self.tree.edition,
            **self.selection.to_document(),
            "references": [
                {
                    "archive": one.archive,
                    "repository": one.repository,
                    "tag": one.tag,
                    "digest": str(one.digest),
                    "bytes": one.size,
                    "source": one.source,
                }
                for one in self.references()
            ],
            "archives": {archive.name: archive.size for archive in self.archives},
            "bytes": sum(archive.size for archive in self.archives),
            "fetch": fetched,
            "inventory": str(inventory.digest()),
            **count(inventory),
        }
        if base is not None:
            document["delta"] = {"saved": saved_by(inventory, base), "base": str(base.digest())}
        return document

    def carry_out(
        self,
        folder: Path,
        *,
        force: bool = False,
        resume: bool = True,
        part_size: int = 0,
        gost_digest: bool = False,
        sign: Callable[[bytes], bytes] | None = None,
        compress: bool = False,
        on_event: OnEvent = ignore_events,
    ) -> PullReport:
        """Fetch everything into a new bundle in `folder`; see `pull`."""
        check_folder(folder, force=force)
        inventory = self.inventory
        with BundleWriter(
            folder,
            self.seal,
            self.selection.files,
            part_size=part_size,
            resume=resume,
            gost_digest=gost_digest,
            sign=sign,
            compress=compress,
        ) as writer:
            plan = make_plan(inventory, writer.held(inventory))
            plan = replace(plan, blobs=writer.in_archive_order(plan.blobs))
            report = transfer(
                plan,
                self.source.content,
                writer,
                jobs=self.jobs,
                on_event=on_event,
                cancel=self.source.cancel,
            )
            writer.finish()
        return PullReport(
            folder,
            self.tree,
            self.selection,
            inventory,
            inventory.digest(),
            {archive.name: archive.size for archive in self.archives},
            report.sent,
            writer.stored if compress else None,
        )


@dataclass(frozen=True, slots=True)
class PlannedReference:
    """An image of a plan. `size` is the bytes of everything it needs, shared parts included."""

    archive: str
    repository: str
    tag: str
    digest: Digest
    size: int
    source: str


def saved_by(inventory: Inventory, base: Inventory) -> int:
    """Bytes of blobs that need not be fetched by who holds `base`."""
    held = base.blob_sizes()
    return sum(size for digest, size in inventory.blob_sizes().items() if digest in held)


def plan_pull(
    client: RegistryClient,
    tree: SourceTree,
    wishes: Wishes,
    *,
    selection: Mapping[str, Any] | None = None,
    jobs: int = DEFAULT_JOBS,
    on_event: OnEvent = ignore_events,
    cancel: threading.Event | None = None,
) -> PullPlan:
    """Decide what `wishes` put into a bundle, down to each byte's place; fetch no image.

    `selection` is kept in the bundle's seal: what was asked for, as JSON values.

    Raises:
        InputError: what was asked for contradicts itself.
        SourceContentError: the source's release tree is incomplete or contradicts itself.
        CancelledError: `cancel` was set.
    """
    client.ping()  # one clear answer about name, TLS and login, before many ask in parallel
    source = ReleaseSource(client, tree, jobs=jobs, on_event=on_event, cancel=cancel)
    selected = select(source, wishes)
    company = Company(wishes.vex, wishes.signatures, listing=not wishes.probing)
    inventories = resolve(source, selected, company, wishes.platforms)
    if not inventories:
        raise SourceContentError(f"nothing at {tree.root} was selected; there is no bundle to make")
    archives = tuple(
        lay_out(name, inventory, {path: tree.origin(path) for path in inventory.repositories})
        for name, inventory in inventories.items()
    )
    tool = f"mirror {version('mirror')}"
    seal = Seal.over(archives, selection or {}, tool, selected.files)
    return PullPlan(tree, selected, archives, seal, source, jobs)


def pull(
    client: RegistryClient,
    tree: SourceTree,
    wishes: Wishes,
    folder: Path,
    *,
    force: bool = False,
    resume: bool = True,
    part_size: int = 0,
    gost_digest: bool = False,
    sign: Callable[[bytes], bytes] | None = None,
    compress: bool = False,
    jobs: int = DEFAULT_JOBS,
    on_event: OnEvent = ignore_events,
    cancel: threading.Event | None = None,
) -> PullReport:
    """Pack what `wishes` select at the source into a new bundle in `folder`.

    A pull that was stopped, in whatever way, is completed by the next one into the same folder:
    what it fetched is not fetched again, unless `resume` is False.

    `part_size` in bytes cuts archives into parts; 0 leaves them whole. `gost_digest` writes a
    GOST R 34.11-2012 digest beside each file. `sign` makes a signature over the bundle's seal
    (`mirror.bundle.signing.sign`). `compress` writes archives in zstd frames, which needs room for
    both forms of them while it lasts.

    Whatever fails, no archive carries its final name until all are complete and durable, and an
    earlier bundle in `folder` (see `force`) is left as it was until then.

    Raises:
        InputError: `folder` is not empty and `force` is not given.
        NoSpaceError: the disk is too small for the plan; nothing was fetched.
        SourceContentError: the source's release tree is incomplete or contradicts itself.
        IncompleteError: some content could not be fetched.
        CancelledError: `cancel` was set.
    """
    check_folder(folder, force=force)
    planned = plan_pull(client, tree, wishes, jobs=jobs, on_event=on_event, cancel=cancel)
    return planned.carry_out(
        folder,
        force=force,
        resume=resume,
        part_size=part_size,
        gost_digest=gost_digest,
        sign=sign,
        compress=compress,
        on_event=on_event,
    )
